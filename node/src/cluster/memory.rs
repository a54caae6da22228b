//! What a node remembers of the cluster between two starts: its own count of starts, and whom it
//! knew.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use millrace_protocol::membership::{Contact, MAX_GENERATION};
use millrace_protocol::node_id::NodeId;
use serde::{Deserialize, Serialize};

use super::error::StartError;
use super::file;

/// Largest file of contacts: a thousand with eight addresses each.
const MAX_CONTACTS_BYTES: u64 = 1024 * 1024;

/// Files in the data folder, beside the identity.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    folder: PathBuf,
}

/// A contact as it stands in the file.
#[derive(Debug, Serialize, Deserialize)]
struct SavedContact {
    id: String,
    addresses: Vec<SocketAddr>,
}

impl Memory {
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    fn generation_path(&self) -> PathBuf {
        self.folder.join("generation")
    }

    fn contacts_path(&self) -> PathBuf {
        self.folder.join("contacts.json")
    }

    /// Counts this start, and makes sure that the next one will count from here.
    ///
    /// A file that is missing or damaged counts as never started: others tell this node what they
    /// know of it, see `Membership::handle_known_as`.
    ///
    /// # Errors
    /// When the file cannot be written: a node that cannot count its starts is not believed.
    pub(super) fn next_generation(&self) -> Result<u64, StartError> {
        let path = self.generation_path();
        let last = file::read(&path, 64).ok().flatten();
        let last = last.and_then(|content| String::from_utf8(content).ok());
        let last = last.and_then(|text| text.trim().parse().ok());
        let last: u64 = last.filter(|last| *last < MAX_GENERATION).unwrap_or(0);
        let next = last + 1;
        self.keep_generation(next)
            .map_err(|source| StartError::File { path, source })?;
        Ok(next)
    }

    /// Keeps a generation that was raised while the node runs.
    pub(super) fn keep_generation(&self, generation: u64) -> io::Result<()> {
        let text = format!("{generation}\n");
        file::replace(&self.generation_path(), text.as_bytes())
    }

    /// Returns whom this node knew; nobody where the file is missing or damaged.
    pub(super) fn contacts(&self) -> Vec<Contact> {
        let content = file::read(&self.contacts_path(), MAX_CONTACTS_BYTES);
        let content = content.ok().flatten().unwrap_or_default();
        let saved: Vec<SavedContact> = serde_json::from_slice(&content).unwrap_or_default();
        let contact = |saved: SavedContact| {
            let id: NodeId = saved.id.parse().ok()?;
            let addresses = saved.addresses;
            Some(Contact { id, addresses })
        };
        saved.into_iter().filter_map(contact).collect()
    }

    /// Keeps whom this node knows.
    pub(super) fn keep_contacts(&self, contacts: &[Contact]) -> io::Result<()> {
        let saved = contacts.iter().map(|contact| SavedContact {
            id: contact.id.to_string(),
            addresses: contact.addresses.clone(),
        });
        let saved: Vec<SavedContact> = saved.collect();
        let content = serde_json::to_vec_pretty(&saved).map_err(io::Error::other)?;
        file::replace(&self.contacts_path(), &content)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_start_has_a_greater_generation() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let memory = Memory::new(folder.path());
        assert_eq!(memory.next_generation().expect("kept"), 1);
        assert_eq!(memory.next_generation().expect("kept"), 2);
        memory.keep_generation(40).expect("kept");
        assert_eq!(memory.next_generation().expect("kept"), 41);
        for damaged in ["zebra".to_owned(), u64::MAX.to_string()] {
            fs::write(memory.generation_path(), damaged).expect("written");
            assert_eq!(memory.next_generation().expect("kept"), 1);
        }
    }

    #[test]
    fn contacts_survive_and_damage_is_no_error() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let memory = Memory::new(folder.path());
        assert_eq!(memory.contacts(), []);
        let contact = Contact {
            id: NodeId::new([7; 32]),
            addresses: vec!["10.0.0.1:5050".parse().expect("an address")],
        };
        memory
            .keep_contacts(std::slice::from_ref(&contact))
            .expect("kept");
        assert_eq!(memory.contacts(), [contact]);
        fs::write(memory.contacts_path(), "[{").expect("written");
        assert_eq!(memory.contacts(), []);
    }
}
