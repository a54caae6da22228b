//! The documents name files and tests that exist.
//!
//! Whether what they say of them is true is for people; rooms that move take their names along.

use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 3] = ["README.md", "ARCHITECTURE.md", "protocol/SPEC.md"];

/// Where the files are that documents name.
const FOLDERS: [&str; 5] = ["protocol", "node", "cluster-tests", "deploy", "scripts"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Lists the files below `folder`, as paths from the root of the workspace.
fn list(folder: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(root().join(folder)).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a plain name");
        let path = format!("{folder}/{name}");
        match entry.file_type().expect("a type").is_dir() {
            true if name == "target" => {}
            true => list(&path, found),
            false => found.push(path),
        }
    }
}

fn files() -> Vec<String> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        list(folder, &mut found);
    }
    found
}

/// Returns what is in backquotes, outside of blocks.
fn quoted(text: &str) -> Vec<String> {
    let prose = text.split("```").step_by(2);
    let quoted = prose.flat_map(|part| part.split('`').skip(1).step_by(2));
    quoted.map(str::to_owned).collect()
}

/// Spells out `{a,b}`.
fn spelled_out(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else {
        return vec![name.to_owned()];
    };
    let (choices, after) = rest.split_once('}').expect("a closing brace");
    let spelled = |choice| spelled_out(&format!("{before}{choice}{after}"));
    choices.split(',').flat_map(spelled).collect()
}

/// Whether `name`, in which `*` is anything, is `path` or its end from a `/` on.
fn is_end_of(name: &str, path: &str) -> bool {
    let starts = path.match_indices('/').map(|(at, _)| at + 1);
    std::iter::once(0)
        .chain(starts)
        .any(|start| fits(name, &path[start..]))
}

fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && fits(after, &rest[at..]))
        }),
    }
}

/// Returns the file that a quotation means, if it means one: source, or a test by its name alone.
fn named(quotation: &str) -> Option<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-./{},*".contains(c);
    let is_test = ["fleet_", "fault_"]
        .iter()
        .any(|kind| quotation.starts_with(kind));
    match quotation {
        _ if !quotation.chars().all(is_name) => None,
        source if source.ends_with(".rs") => Some(source.to_owned()),
        test if is_test => Some(format!("cluster-tests/tests/{test}.rs")),
        test if test.starts_with("cluster-tests/tests/") => Some(format!("{test}.rs")),
        _ => None,
    }
}

#[test]
fn files_that_documents_name_exist() {
    let files = files();
    let mut missing = Vec::new();
    let mut count = 0;
    for document_name in DOCUMENTS {
        let names = quoted(&document(document_name));
        for name in names.iter().filter_map(|quotation| named(quotation)) {
            for name in spelled_out(&name) {
                count += 1;
                if !files.iter().any(|file| is_end_of(&name, file)) {
                    missing.push(format!("{document_name}: {name}"));
                }
            }
        }
    }
    assert!(count > 100, "only {count} names were found");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn what_documents_link_to_exists() {
    for document_name in DOCUMENTS {
        let text = document(document_name);
        let folder = root().join(document_name);
        let folder = folder.parent().expect("it is in a folder");
        for link in text.split("](").skip(1) {
            let (target, _) = link.split_once(')').expect("the end of a link");
            match target.strip_prefix('#') {
                Some(heading) => assert!(has_heading(&text, heading), "{document_name}: {target}"),
                None => assert!(folder.join(target).exists(), "{document_name}: {target}"),
            }
        }
    }
}

/// Whether a heading is linked to as `anchor`.
fn has_heading(text: &str, anchor: &str) -> bool {
    let mut headings = text.lines().filter(|line| line.starts_with('#'));
    headings.any(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-") == anchor
    })
}

#[test]
fn names_are_found_by_their_end_and_spelled_out() {
    assert!(is_end_of("pull/tag.rs", "node/src/pull/tag.rs"));
    assert!(is_end_of(
        "fault_*.rs",
        "cluster-tests/tests/fault_break.rs"
    ));
    assert!(!is_end_of("ag.rs", "node/src/pull/tag.rs"));
    assert_eq!(spelled_out("{a,b}/c.rs"), ["a/c.rs", "b/c.rs"]);
    let text = "`a.rs` and\n```\n`b.rs`\n```\n`c d`";
    assert_eq!(quoted(text), ["a.rs", "c d"]);
}
