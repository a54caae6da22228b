//! The machine under a benchmark: what it is, because figures without it mean nothing, and bringing
//! it into the same state before each measurement.

use std::process::Command;

/// Describes machine, kernel and programs. What cannot be found out is left out.
pub fn describe() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field("/proc/cpuinfo", "model name").unwrap_or_default();
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let nginx = output("/usr/sbin/nginx", "-v");
    let registry = output("docker-registry", "--version");
    format!(
        "{cpus} x {model}, {memory}, Linux {}\n{nginx}; {registry}\n",
        kernel.trim(),
    )
}

/// Brings the machine into the same state before each measurement of work that writes `bytes` of
/// files: nothing waits to be written back, and memory for the page cache is at hand.
///
/// A virtual machine gives memory that has been free for a while back to its host. To get it again
/// costs more than all that is done with it, and whoever runs second finds what the first one got.
pub fn settle(bytes: u64) {
    rustix::fs::sync();
    // For the files and all else, several times over: what is free lies in pieces.
    let bytes = usize::try_from(4 * bytes).expect("less than the address space");
    drop(std::hint::black_box(vec![1_u8; bytes]));
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = read(path);
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(key, _)| key.trim() == name)?;
    Some(value.trim().to_owned())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Returns the first line that a program prints about itself, on either output.
fn output(program: &str, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).output() else {
        return format!("no {program}");
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or_default().to_owned()
}
