//! The commands that end by themselves: what they print and with which status they end.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn millrace(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millrace"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn check(folder: &Path, yaml: &str) -> (Option<i32>, String, String) {
    let file = folder.join("m.yml");
    std::fs::write(&file, yaml).expect("writable");
    let file = file.to_str().expect("text");
    let output = millrace(&["check", "--config", file]);
    let said = |bytes| text(bytes).replace(file, "m.yml");
    let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
    (output.status.code(), stdout, stderr)
}

#[test]
fn check_says_what_a_file_means() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let yaml = "http: {addr: ':5000'}\nredis: {addr: x}\nstorage: {filesystem: {rootdirectory: /d}}\n\
                upstreams: {corp: {url: 'http://r.corp:5000', username: u, password: hunter2}}";
    let (status, stdout, stderr) = check(folder.path(), yaml);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    for line in [
        "m.yml: ok",
        "m.yml:2: redis: ignored: the index is kept in the data folder",
        "clients    :5000 (reachable from outside)",
        "debug      127.0.0.1:5001 (this host only)",
        "data       /d",
        "upstream   docker.io at https://registry-1.docker.io/, the default",
    ] {
        assert!(
            stdout.lines().any(|found| found == line),
            "{line}\n{stdout}"
        );
    }
    assert!(stdout.contains("upstream   corp at http://r.corp:5000/, with credentials: who"));
    assert!(!stdout.contains("hunter2"), "{stdout}");
}

#[test]
fn check_ends_with_2_and_one_line_for_a_mistake() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (status, stdout, stderr) = check(folder.path(), "http:\n  adr: :5000\n");
    assert_eq!((status, stdout.as_str()), (Some(2), ""));
    assert_eq!(
        stderr,
        "m.yml:2: http.adr: unknown key; did you mean http.addr?\n"
    );
}

#[test]
fn serve_starts_nothing_for_a_mistake() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("m.yml");
    let data = folder.path().join("data");
    let yaml = format!(
        "storage: {{filesystem: {{rootdirectory: {}}}}}\nauth: {{token: {{}}}}\n",
        data.display()
    );
    std::fs::write(&file, yaml).expect("writable");
    let output = millrace(&["serve", "--config", file.to_str().expect("text")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("m.yml:2: auth.token: not supported"));
    assert!(!data.exists());
}

#[test]
fn unknown_arguments_end_with_2() {
    for arguments in [&["serve", "--confg", "x"][..], &["start"], &[]] {
        assert_eq!(millrace(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let version = text(&millrace(&["--version"]).stdout);
    assert_eq!(version, format!("millrace {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn status_of_no_node_is_a_clear_error() {
    // A port that was free a moment ago.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let output = millrace(&["status", "--address", &address]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    let start = format!("no node answers at http://{address}/status");
    assert!(
        stderr.starts_with(&start) && stderr.lines().count() == 1,
        "{stderr}"
    );
}

#[test]
fn secret_prints_one_that_a_cluster_takes_and_never_the_same() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let made = [(); 2].map(|()| text(&millrace(&["secret"]).stdout));
    assert_ne!(made[0], made[1]);
    let secret = made[0].trim();
    assert!(secret.len() >= 32 && !secret.contains(char::is_whitespace));
    let yaml = format!("cluster: {{listen: '10.0.0.1:5050', secret: '{secret}', zone: fra1}}");
    let (status, stdout, stderr) = check(folder.path(), &yaml);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let line = "cluster    10.0.0.1:5050, zone fra1, waits to be joined";
    assert!(stdout.lines().any(|found| found == line), "{stdout}");
    assert!(!stdout.contains(secret));
}

#[test]
fn serve_may_open_as_many_files_as_the_system_allows() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("m.yml");
    let data = folder.path().join("data");
    let yaml = format!(
        "http: {{addr: '127.0.0.1:0', debug: {{addr: '127.0.0.1:0'}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\n",
        data.display()
    );
    std::fs::write(&file, yaml).expect("writable");
    let mut node = Command::new("sh")
        .args([
            "-c",
            "ulimit -S -n 256 && exec \"$0\" serve --config \"$1\" 2>&1",
        ])
        .args([Path::new(env!("CARGO_BIN_EXE_millrace")), &file])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the shell runs");
    let mut said = BufReader::new(node.stdout.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says that it starts");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.id()));
    node.kill().expect("it runs");
    node.wait().expect("it ended");
    let limits = limits.expect("it runs");
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let [soft, hard] = files
        .map(str::split_whitespace)
        .map_or([""; 2], |mut words| {
            [words.nth(3), words.next()].map(Option::unwrap_or_default)
        });
    assert!(!soft.is_empty() && soft == hard, "{limits}\n{line}");
}
