//! `millrace user`: the htpasswd file without other tools.
//!
//! A password comes from standard input and never from an argument, which every process sees. A
//! running node takes the file over by itself.

use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use millrace_protocol::access::is_user_name;

use crate::registry::auth::users::{self, Users, UsersError};

use super::{MISTAKE, complain, load, print};

/// Cost of new hashes: 70 ms for a login and for each guess of a thief.
const COST: u32 = 10;

/// Longest password that counts whole, in bytes: bcrypt looks at no more.
const MAX_PASSWORD_BYTES: usize = 72;

/// Rights of a new file: for its owner and a group that the node may be in.
const NEW_FILE_MODE: u32 = 0o640;

/// What to do with a file of users.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user, or give one another password; reads the password from standard input
    Add(NameArgs),
    /// Remove a user
    Remove(NameArgs),
    /// List the users
    List(FileArgs),
}

/// A user in a file.
#[derive(Debug, Args)]
pub struct NameArgs {
    /// Name of the user
    pub name: String,
    /// The file
    #[command(flatten)]
    pub file: FileArgs,
}

/// Which file.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct FileArgs {
    /// Configuration file of the node, for its auth.htpasswd.path
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The htpasswd file itself
    #[arg(long, value_name = "HTPASSWD")]
    pub file: Option<PathBuf>,
}

/// Why users cannot be changed.
#[derive(Debug, thiserror::Error)]
enum UserError {
    #[error("{0}{cause}", cause = because(.0))]
    Users(#[from] UsersError),
    #[error(
        "no user can have this name: it is empty, has a colon or control characters, or is a word of access rules"
    )]
    Name,
    #[error("{path} names no such user", path = .0.display())]
    NoSuchUser(PathBuf),
    #[error("cannot read the password: {0}")]
    Input(#[source] io::Error),
    #[error("the password is empty, longer than {MAX_PASSWORD_BYTES} bytes, or has a zero byte")]
    Password,
    #[error("cannot hash the password: {0}")]
    Hash(#[source] bcrypt::BcryptError),
    #[error("cannot write {path}: {error}", path = .path.display())]
    Write { path: PathBuf, error: io::Error },
}

fn because(error: &UsersError) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or(String::new(), |cause| format!(": {cause}"))
}

/// Runs `user`.
pub fn user(command: &UserCommand) -> ExitCode {
    let args = match command {
        UserCommand::Add(args) | UserCommand::Remove(args) => &args.file,
        UserCommand::List(args) => args,
    };
    let path = match path(args) {
        Ok(path) => path,
        Err(code) => return code,
    };
    let done = match command {
        UserCommand::Add(args) => add(&path, &args.name),
        UserCommand::Remove(args) => remove(&path, &args.name),
        UserCommand::List(_) => list(&path),
    };
    match done {
        Ok(text) => print(&text),
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn path(args: &FileArgs) -> Result<PathBuf, ExitCode> {
    if let Some(path) = &args.file {
        return Ok(path.clone());
    }
    let loaded = load(args.config.as_deref())?;
    let htpasswd = loaded.config.auth.htpasswd;
    htpasswd.map(|htpasswd| htpasswd.path).ok_or_else(|| {
        complain(&"the configuration has no auth.htpasswd.path");
        ExitCode::from(MISTAKE)
    })
}

fn add(path: &Path, name: &str) -> Result<String, UserError> {
    if !is_user_name(name) || name.trim() != name {
        return Err(UserError::Name);
    }
    let before = match users::read(path) {
        Err(UsersError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            String::new()
        }
        result => result?,
    };
    let users = Users::parse(path, before)?;
    let password = password()?;
    let hash = bcrypt::hash_with_result(&password, COST).map_err(UserError::Hash)?;
    // The version that `htpasswd` writes.
    let hash = hash.format_for_version(bcrypt::Version::TwoY);
    write(path, &users.with(name, &hash))?;
    Ok(String::new())
}

fn remove(path: &Path, name: &str) -> Result<String, UserError> {
    let users = Users::parse(path, users::read(path)?)?;
    if !users.names().contains(&name) {
        return Err(UserError::NoSuchUser(path.to_owned()));
    }
    write(path, &users.without(name))?;
    Ok(String::new())
}

fn list(path: &Path) -> Result<String, UserError> {
    let users = Users::parse(path, users::read(path)?)?;
    let names = users.names().into_iter();
    Ok(names.map(|name| format!("{name}\n")).collect())
}

/// Reads one line; what is typed at a terminal is not shown.
fn password() -> Result<String, UserError> {
    let input = io::stdin();
    let quiet = input.is_terminal().then(Quiet::begin);
    let mut line = String::new();
    let read = input.lock().read_line(&mut line);
    drop(quiet);
    read.map_err(UserError::Input)?;
    let password = line.trim_end_matches(['\r', '\n']);
    let is_usable =
        !password.is_empty() && password.len() <= MAX_PASSWORD_BYTES && !password.contains('\0');
    if is_usable {
        Ok(password.to_owned())
    } else {
        Err(UserError::Password)
    }
}

/// A terminal that does not show what is typed, for as long as this exists.
struct Quiet {
    before: Option<rustix::termios::Termios>,
}

impl Quiet {
    fn begin() -> Self {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let mut error = io::stderr();
        // Without a prompt the password is read all the same.
        let _ = write!(error, "password: ").and_then(|()| error.flush());
        let before = tcgetattr(io::stdin()).ok();
        if let Some(mut quiet) = before.clone() {
            quiet.local_modes.remove(LocalModes::ECHO);
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &quiet);
        }
        Self { before }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
        let _ = writeln!(io::stderr());
    }
}

/// Replaces the file in one step, so that a node never reads half of it; keeps its rights and owner.
fn write(path: &Path, text: &str) -> Result<(), UserError> {
    let error = |error| UserError::Write {
        path: path.to_owned(),
        error,
    };
    // A link stays a link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let before = fs::metadata(&target).ok();
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = target.with_file_name(name);
    let mode = before
        .as_ref()
        .map_or(NEW_FILE_MODE, |before| before.mode() & 0o7777);
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        if let Some(before) = &before {
            std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, &target)
    })();
    written.map_err(|cause| {
        let _ = fs::remove_file(&new);
        error(cause)
    })
}
