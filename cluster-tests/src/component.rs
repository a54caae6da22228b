//! The programs of the distribution that the tests run.
//!
//! It finds them or names the package that brings them; `scripts/install-test-tools` installs
//! from the same list. It starts nothing: that is [`crate::process`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What the tests need from Debian: `package | command | what it is for`, one a line.
const LIST: &str = include_str!("../../scripts/test-tools.list");

/// Folders searched before `PATH`: the distribution's own programs belong together, and daemons
/// are often not on a user's path.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// Finds `command` on this machine.
///
/// # Errors
/// The command that installs it, when it is missing.
pub fn find(command: &str) -> Result<PathBuf> {
    let package = package_of(command)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = SYSTEM_FOLDERS.iter().map(PathBuf::from);
    system
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(command))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!("{command} is missing: run scripts/install-test-tools, or apt-get install -y {package}")
        })
}

/// Returns the Debian package that brings `command`.
fn package_of(command: &str) -> Result<&'static str> {
    for line in LIST.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = line.split('|').map(str::trim);
        if let (Some(package), Some(name)) = (fields.next(), fields.next())
            && name == command
        {
            return Ok(package);
        }
    }
    bail!("{command} is not in scripts/test-tools.list: add it with its package")
}

/// Finds the `millrace` program that was built together with the running test.
///
/// # Errors
/// The command that builds it, when it is missing or older than its sources.
pub fn millrace() -> Result<PathBuf> {
    built("millrace", "-p millrace")
}

/// Finds the node with wrong answers that was built together with the running test.
///
/// # Errors
/// As [`millrace`].
pub fn faulty() -> Result<PathBuf> {
    built(
        "examples/faulty",
        "-p millrace-cluster-tests --example faulty",
    )
}

/// Finds a program below the target folder; `target` is what cargo is to build for it.
fn built(program: &str, target: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("finding the running test program")?;
    let folder = test
        .ancestors()
        .find(|folder| folder.ends_with("deps"))
        .and_then(Path::parent)
        .with_context(|| format!("{} is not in a target folder", test.display()))?;
    let release = if folder.ends_with("release") {
        " --release"
    } else {
        ""
    };
    let build = format!("run: cargo build{release} {target}");
    let binary = folder.join(program);
    let built =
        modified(&binary).with_context(|| format!("{} is missing; {build}", binary.display()))?;
    let sources = std::fs::read_to_string(binary.with_extension("d"))
        .with_context(|| format!("{} has no dependency file; {build}", binary.display()))?;
    // One make rule: `target: source source …`. Cargo compares the same files.
    for source in sources.split_whitespace().skip(1) {
        if modified(Path::new(source)).is_ok_and(|changed| changed > built) {
            bail!("{} is older than {source}; {build}", binary.display());
        }
    }
    Ok(binary)
}

fn modified(path: &Path) -> Result<std::time::SystemTime> {
    Ok(std::fs::metadata(path)?.modified()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_the_list_is_found() {
        let skopeo = find("skopeo").expect("skopeo is installed by make test");
        assert!(skopeo.ends_with("skopeo"));
    }

    #[test]
    fn an_unlisted_command_is_refused() {
        let error = find("no-such-command").expect_err("it is not in the list");
        assert!(error.to_string().contains("test-tools.list"), "{error}");
    }
}
