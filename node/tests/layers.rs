//! Fails on any arrow between rooms that ARCHITECTURE.md does not draw.
//!
//! Reads the `crate::room` paths of every file in `node/src`. The table below says which rooms a
//! room may use; `main`, `lib`, `node` and `cli` put rooms together and are free.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    (
        "registry",
        &[
            "pull",
            "upstream",
            "store",
            "tls",
            "telemetry",
            "task",
            "units",
            "watch",
        ],
    ),
    (
        "admin",
        &[
            "registry",
            "pull",
            "upstream",
            "peer",
            "cluster",
            "store",
            "tls",
            "telemetry",
            "task",
            "units",
        ],
    ),
    (
        "pull",
        &[
            "peer",
            "upstream",
            "cluster",
            "store",
            "telemetry",
            "task",
            "units",
        ],
    ),
    ("peer", &["cluster", "store", "telemetry", "task", "units"]),
    ("upstream", &["telemetry", "task", "units"]),
    ("store", &["telemetry", "task", "units"]),
    ("cluster", &["telemetry", "task", "units", "watch"]),
    // The sum of the rooms' settings: it knows their types and nothing else of them.
    (
        "config",
        &[
            "registry",
            "upstream",
            "cluster",
            "tls",
            "telemetry",
            "units",
        ],
    ),
    ("tls", &["watch"]),
    ("telemetry", &[]),
    ("task", &[]),
    ("units", &[]),
    ("watch", &[]),
];

/// Files that may see everything.
const FREE: &[&str] = &["main", "lib", "node", "cli"];

#[test]
fn rooms_use_only_what_lies_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut rooms = BTreeSet::new();
    for file in rust_files(&source) {
        let room = room_of(&source, &file);
        if FREE.contains(&room.as_str()) {
            continue;
        }
        let Some(may_use) = allowed.get(room.as_str()) else {
            wrong.push(format!(
                "{}: the room {room} is not in the table",
                file.display()
            ));
            continue;
        };
        for used in rooms_used(&fs::read_to_string(&file).expect("readable source")) {
            if used != room && !may_use.contains(&used.as_str()) {
                wrong.push(format!("{}: {room} may not use {used}", file.display()));
            }
        }
        rooms.insert(room);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let known: BTreeSet<String> = allowed.keys().map(ToString::to_string).collect();
    assert_eq!(rooms, known, "the table names rooms that do not exist");
}

#[test]
fn the_reader_sees_every_kind_of_use() {
    let source = "use crate::store::Store;\nuse crate::{pull, upstream::Upstream};\n\
                  // crate::comment is no use\nlet x = crate::units::parse();";
    let used: Vec<String> = rooms_used(source).into_iter().collect();
    assert_eq!(used, ["pull", "store", "units", "upstream"]);
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("readable folder") {
        let path = entry.expect("readable entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn room_of(source: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(source).expect("below the source folder");
    let first = relative.components().next().expect("not empty");
    let name = Path::new(first.as_os_str()).with_extension("");
    name.to_string_lossy().into_owned()
}

/// Returns the rooms that a file names in `crate::…` paths, one level of braces included.
fn rooms_used(source: &str) -> BTreeSet<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => used.extend(first_names(list)),
            None => used.extend(identifier(rest)),
        }
    }
    used
}

/// Returns the first identifier of each item of a braced list.
fn first_names(list: &str) -> Vec<String> {
    let mut depth = 1;
    let mut names: Vec<String> = identifier(list.trim_start()).into_iter().collect();
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 1 => break,
            '}' => depth -= 1,
            ',' if depth == 1 => names.extend(identifier(list[at + 1..].trim_start())),
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> Option<String> {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}
