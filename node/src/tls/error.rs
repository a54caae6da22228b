//! What can be wrong with certificate files.

use std::io;
use std::path::PathBuf;

/// Why TLS cannot be offered with these files; each names the one at fault.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is far larger than certificates are.
    #[error("{} is larger than {limit_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit_bytes: u64,
    },
    /// A file is no PEM, or was cut off.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A file that should hold certificates has none.
    #[error("{} holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate cannot be understood.
    #[error("certificate {position} in {} cannot be read", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which of the certificates in it, from 1.
        position: usize,
    },
    /// A certificate of the chain has ended or has not begun.
    #[error(
        "certificate {position} in {} is valid from {not_before} to {not_after}, and not now",
        path.display()
    )]
    NotValidNow {
        /// The file.
        path: PathBuf,
        /// Which of the certificates in it, from 1.
        position: usize,
        /// Begin of its validity.
        not_before: String,
        /// End of its validity.
        not_after: String,
    },
    /// The private key is of a kind that cannot be used.
    #[error("the private key in {} cannot be used", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The private key is not that of the certificate.
    #[error("the private key in {} does not belong to the certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The file of the chain.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// An authority of client certificates cannot be used.
    #[error("{} cannot be used to verify client certificates", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The client authorities do not fit together.
    #[error("client certificates cannot be verified")]
    Verifier {
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
    /// The crypto library refuses the settings.
    #[error("TLS cannot be set up")]
    Setup {
        /// Why.
        source: rustls::Error,
    },
}
