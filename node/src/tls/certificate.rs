//! What certificates say: when they are valid, and whom they name.

use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

use super::error::TlsError;
use super::unix_seconds;

/// Most names that are taken from a client certificate; those of people and hosts have a few.
const MAX_NAMES: usize = 64;

/// Returns the first end of a chain's validity, in seconds since 1970.
///
/// # Errors
/// A certificate cannot be read, or is not valid at `now`.
pub(super) fn validity(
    path: &Path,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<u64, TlsError> {
    let now = i64::try_from(unix_seconds(now)).unwrap_or(i64::MAX);
    let mut first_end = i64::MAX;
    for (index, der) in chain.iter().enumerate() {
        let position = index + 1;
        let certificate = parse(der).ok_or_else(|| TlsError::Malformed {
            path: path.to_owned(),
            position,
        })?;
        let validity = certificate.validity();
        let (begin, end) = (validity.not_before, validity.not_after);
        if now < begin.timestamp() || now > end.timestamp() {
            return Err(TlsError::NotValidNow {
                path: path.to_owned(),
                position,
                not_before: day(begin),
                not_after: day(end),
            });
        }
        first_end = first_end.min(end.timestamp());
    }
    Ok(u64::try_from(first_end).unwrap_or(0))
}

/// Returns the names of a client certificate: its common names, then its alternative names that
/// are host names or mail addresses.
///
/// The certificate must have been verified.
pub fn client_names(der: &CertificateDer<'_>) -> Vec<String> {
    let Some(certificate) = parse(der) else {
        return Vec::new();
    };
    let common = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok());
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) => Some(*name),
            _ => None,
        });
    let names = common.chain(alternative).take(MAX_NAMES);
    names.map(str::to_owned).collect()
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    parse_x509_certificate(der)
        .ok()
        .map(|(_, certificate)| certificate)
}

fn day(time: ASN1Time) -> String {
    time.to_rfc2822()
        .unwrap_or_else(|_| time.timestamp().to_string())
}
