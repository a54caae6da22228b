//! Whom the configuration keeps out: the list in it, and a file that is read anew.

use std::io;
use std::path::{Path, PathBuf};

use millrace_protocol::membership::MAX_DENIED;
use millrace_protocol::node_id::NodeId;

use super::config::Config;
use super::file;

/// Largest file of denied nodes: all that count, with a comment each.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Where the list comes from.
#[derive(Clone, Debug)]
pub(super) struct DeniedSource {
    fixed: Vec<NodeId>,
    file: Option<PathBuf>,
}

impl DeniedSource {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            fixed: config.deny.iter().map(|text| text.0).collect(),
            file: config.deny_file.clone(),
        }
    }

    /// Returns the file, for messages.
    pub(super) fn path(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new("cluster.deny"))
    }

    /// Reads the list; a file that does not exist is empty.
    ///
    /// # Errors
    /// When the file cannot be read, or has a line that is no id, or too many of them.
    pub(super) fn read(&self) -> io::Result<Vec<NodeId>> {
        let mut denied = self.fixed.clone();
        if let Some(path) = &self.file {
            let content = file::read(path, MAX_FILE_BYTES)?.unwrap_or_default();
            let text = String::from_utf8_lossy(&content);
            for line in text
                .lines()
                .map(|line| line.split('#').next().unwrap_or("").trim())
            {
                if !line.is_empty() {
                    denied.push(line.parse().map_err(invalid)?);
                }
            }
        }
        match denied.len() > MAX_DENIED {
            true => Err(invalid(format!("more than {MAX_DENIED} nodes"))),
            false => Ok(denied),
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::super::config::NodeIdText;
    use super::*;

    #[test]
    fn the_list_and_the_file_add_up() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("denied");
        let (one, two) = (NodeId::new([1; 32]), NodeId::new([2; 32]));
        let config = Config {
            deny: vec![NodeIdText(one)],
            deny_file: Some(path.clone()),
            ..Config::default()
        };
        let source = DeniedSource::new(&config);
        assert_eq!(source.read().expect("no file yet"), [one]);
        std::fs::write(&path, format!("# gone\n{two} # build7\n\n")).expect("written");
        assert_eq!(source.read().expect("read"), [one, two]);
        std::fs::write(&path, "build7").expect("written");
        source.read().expect_err("not an id");
    }
}
