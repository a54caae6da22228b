//! One line of the registry's log of requests.
//!
//! When a line is written, and that all are there, is `upstream`'s to know.

/// One request that the registry has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query without the question mark, empty if there was none.
    pub query: String,
    /// The status of the answer.
    pub status: u16,
    /// Bytes of the body that were written.
    pub body_bytes: u64,
}

impl Access {
    /// Tells whether the body of a manifest or blob was asked for.
    pub fn is_content(&self) -> bool {
        self.method == "GET"
            && ["/blobs/", "/manifests/"]
                .iter()
                .any(|part| self.path.contains(part))
    }

    /// Reads a line of Apache's combined log format: `… "GET /v2/ HTTP/1.1" 200 2 …`.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut quoted = line.splitn(3, '"').skip(1);
        let mut request = quoted.next()?.split(' ');
        let mut numbers = quoted.next()?.split_whitespace();
        let method = request.next()?.to_owned();
        let (path, query) = request
            .next()
            .map(|target| target.split_once('?').unwrap_or((target, "")))?;
        let status = numbers.next()?.parse().ok()?;
        let body_bytes = numbers.next()?.parse().unwrap_or(0);
        Some(Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            status,
            body_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_line_is_read() {
        let line = r#"127.0.0.1 - - [24/Nov/2026:02:24:47 +0000] "HEAD /v2/a/manifests/b?ns=docker.io HTTP/1.1" 200 422 "" "containerd/1.6""#;
        let access = Access::parse(line).expect("a request");
        let expected = Access {
            method: "HEAD".into(),
            path: "/v2/a/manifests/b".into(),
            query: "ns=docker.io".into(),
            status: 200,
            body_bytes: 422,
        };
        assert_eq!(access, expected);
        assert!(!access.is_content());
    }
}
