//! The head of a response, as far as a load generator must read it: status, length, its end.

use anyhow::{Context, Result, ensure};

/// What a client needs in order to read a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Where the body starts in the bytes that were given.
    pub(super) end: usize,
    /// The length of the body in bytes.
    pub(super) body_bytes: u64,
}

/// Reads a head from the first bytes of a response; `None` while it is not complete.
///
/// # Errors
/// When the status is not 200 or there is no `Content-Length`: such a response is no measurement.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Head>> {
    let Some(blank) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes[..blank]);
    let status = text.lines().next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200"), "answered {status:?}");
    let length = text.lines().filter_map(|line| line.split_once(':'));
    let length = length
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .find_map(|(_, value)| value.trim().parse().ok());
    Ok(Some(Head {
        end: blank + 4,
        body_bytes: length.context("the response has no length")?,
    }))
}

/// Returns the bytes of a GET request over a kept connection.
pub(super) fn request(host: &str, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_where_the_body_starts_and_how_long_it_is() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\nX: y\r\n\r\nhel";
        let head = parse(bytes).expect("a good answer").expect("complete");
        assert_eq!((&bytes[head.end..], head.body_bytes), (&b"hel"[..], 12));
        assert_eq!(parse(&bytes[..30]).expect("not wrong so far"), None);
    }

    #[test]
    fn an_answer_that_is_no_body_is_no_measurement() {
        parse(b"HTTP/1.1 503 Busy\r\nContent-Length: 3\r\n\r\n").expect_err("not a 200");
        parse(b"HTTP/1.1 200 OK\r\n\r\n").expect_err("no length");
    }
}
