//! Keys and records as they stand in the index.
//!
//! Every record begins with a version byte; one of another version counts as absent.

use millrace_protocol::oci::{Algorithm, Digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// First byte of every record.
const RECORD_VERSION: u8 = 1;

/// Largest record that is decoded, in bytes.
const MAX_RECORD_BYTES: usize = 4096;

/// Returns the key of a digest: one byte for the algorithm, then the hash.
pub(in crate::store) fn key(digest: &Digest) -> Vec<u8> {
    let mut key = Vec::with_capacity(65);
    key.push(match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    });
    key.extend_from_slice(digest.hash());
    key
}

pub(super) fn digest_of(key: &[u8]) -> Option<Digest> {
    let (kind, hash) = key.split_first()?;
    let algorithm = match kind {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return None,
    };
    format!("{}:{}", algorithm.name(), hex(hash)).parse().ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn access_key(accessed: u64, key: &[u8]) -> Vec<u8> {
    [&accessed.to_be_bytes(), key].concat()
}

pub(super) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let mut bytes = vec![RECORD_VERSION];
    bincode::serde::encode_into_std_write(record, &mut bytes, bincode::config::standard())
        .expect("index records have nothing that bincode refuses, and a Vec takes all");
    bytes
}

/// Decodes a record; one of another version or shape counts as absent.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (&RECORD_VERSION, record) = bytes.split_first()? else {
        return None;
    };
    let config = bincode::config::standard().with_limit::<MAX_RECORD_BYTES>();
    let (record, _) = bincode::serde::decode_from_slice(record, config).ok()?;
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::BlobRecord;

    #[test]
    fn records_of_another_version_count_as_absent() {
        let record = BlobRecord {
            size: 1,
            accessed: 2,
        };
        let mut bytes = encode(&record);
        assert_eq!(decode(&bytes), Some(record));
        bytes[0] = 2;
        assert_eq!(decode::<BlobRecord>(&bytes), None);
        assert_eq!(decode::<BlobRecord>(&[]), None);
        assert_eq!(decode::<BlobRecord>(&[RECORD_VERSION]), None);
    }
}
