//! The words of the OCI specifications: digests, references, descriptors, manifests.
//!
//! Everything here is parsed once, at the door, into a type that cannot hold a bad value.
//! Manifests are read but never written: their bytes are kept as the upstream sent them.

pub mod descriptor;
pub mod digest;
pub mod error_code;
pub mod manifest;
pub mod reference;
pub mod route;
mod shape;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use error_code::{ERROR_MEDIA_TYPE, ErrorCode};
pub use manifest::{InvalidManifest, Manifest, MediaType};
pub use reference::{InvalidReference, Reference, RepositoryName, Tag};
