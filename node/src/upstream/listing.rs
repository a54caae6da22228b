//! Lists at an upstream: tags, and the manifests that refer to a digest.
//!
//! Pages are passed on one by one; following them, caching them and rewriting links for clients
//! is the caller's. Source: OCI end-8, end-12; CLIENT-CONTRACT E5, F6 and section 9.5.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::LINK;
use millrace_protocol::oci::{Digest, MediaType, Reference, RepositoryName};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::Inner;
use super::attempt::Request;
use super::error::{Defect, FetchError, Subject};
use super::metrics::Kind;

/// Longest hash in a tag that stands for a digest, by the referrers tag schema.
const MAX_TAG_HEX: usize = 64;

/// What an upstream without referrers has: nothing.
const EMPTY_INDEX: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// A page of tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagList {
    /// In the upstream's order.
    pub tags: Vec<String>,
    /// Query that asks for the next page; `None` on the last one.
    pub next_query: Option<String>,
}

/// A page of referrers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrers {
    /// An image index, as JSON.
    pub body: Bytes,
    /// Which filters the upstream has applied, in its words.
    pub filters_applied: Option<String>,
    /// Query that asks for the next page; `None` on the last one.
    pub next_query: Option<String>,
}

#[derive(Deserialize)]
struct TagsBody {
    /// Some registries send null for an empty repository.
    tags: Option<Vec<String>>,
}

impl Inner {
    pub(super) async fn list_tags(
        &self,
        repository: &RepositoryName,
        query: &str,
        deadline: Instant,
    ) -> Result<TagList, FetchError> {
        let request = Request {
            kind: Kind::Tags,
            subject: Arc::new(Subject::Tags(repository.clone())),
            path: format!("{repository}/tags/list"),
            query: Some(query.to_owned()),
            range: None,
        };
        let answer = self.fetch(&request, deadline).await?;
        let next_query = next_query(answer.response.headers());
        let body = self.read(answer, &request.subject, deadline).await?;
        let malformed = |_| self.bad_answer(&request.subject, Defect::Malformed("list of tags"));
        let body: TagsBody = serde_json::from_slice(&body).map_err(malformed)?;
        Ok(TagList {
            tags: body.tags.unwrap_or_default(),
            next_query,
        })
    }

    pub(super) async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        query: &str,
        deadline: Instant,
    ) -> Result<Referrers, FetchError> {
        let request = Request {
            kind: Kind::Referrers,
            subject: Arc::new(Subject::Referrers(repository.clone(), *digest)),
            path: format!("{repository}/referrers/{digest}"),
            query: Some(query.to_owned()),
            range: None,
        };
        let answer = match self.fetch(&request, deadline).await {
            Ok(answer) => answer,
            Err(FetchError::NotFound { .. }) => {
                return self.referrers_by_tag(repository, digest, deadline).await;
            }
            Err(error) => return Err(error),
        };
        let headers = answer.response.headers();
        let filters = headers
            .get("oci-filters-applied")
            .and_then(|value| value.to_str().ok());
        let (filters_applied, next_query) = (filters.map(str::to_owned), next_query(headers));
        let body = self.read(answer, &request.subject, deadline).await?;
        self.check_index(&request.subject, &body)?;
        Ok(Referrers {
            body,
            filters_applied,
            next_query,
        })
    }

    /// Asks for the tag under which an upstream without the referrers API keeps the index.
    async fn referrers_by_tag(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Referrers, FetchError> {
        let hex = digest.hex();
        let tag = format!(
            "{}-{}",
            digest.algorithm().name(),
            &hex[..hex.len().min(MAX_TAG_HEX)]
        );
        let tag = Reference::Tag(tag.parse().expect("an algorithm and digits are a tag"));
        let body = match self.fetch_manifest(repository, &tag, deadline).await {
            Ok(manifest) => manifest.bytes,
            Err(FetchError::NotFound { .. }) => Bytes::from_static(EMPTY_INDEX.as_bytes()),
            Err(error) => return Err(error),
        };
        self.check_index(
            &Arc::new(Subject::Referrers(repository.clone(), *digest)),
            &body,
        )?;
        Ok(Referrers {
            body,
            filters_applied: None,
            next_query: None,
        })
    }

    /// An answer that is no index must not pass for "nothing refers to it": a client would take
    /// a signed image for an unsigned one.
    fn check_index(&self, subject: &Arc<Subject>, body: &[u8]) -> Result<(), FetchError> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(rename = "mediaType")]
            media_type: Option<MediaType>,
            #[serde(rename = "manifests")]
            _manifests: Vec<serde::de::IgnoredAny>,
        }
        let index = serde_json::from_slice::<Index>(body).ok();
        let right = |index: Index| {
            index
                .media_type
                .is_none_or(|media_type| media_type.as_str() == MediaType::OCI_INDEX)
        };
        if index.is_some_and(right) {
            return Ok(());
        }
        Err(self.bad_answer(subject, Defect::Malformed("list of referrers")))
    }
}

/// Returns the query of the `Link` with `rel="next"`: registries write its address in many ways,
/// and only its query matters.
fn next_query(headers: &HeaderMap) -> Option<String> {
    let links = headers
        .get_all(LINK)
        .iter()
        .filter_map(|value| value.to_str().ok());
    links.flat_map(split_links).find_map(|link| {
        let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            let value = value.trim().trim_matches('"');
            name.trim().eq_ignore_ascii_case("rel") && value.eq_ignore_ascii_case("next")
        });
        let base = Url::parse("http://upstream/").expect("a constant URL");
        let query = base.join(address).ok()?.query().map(str::to_owned);
        query.filter(|query| is_next && !query.is_empty())
    })
}

/// Splits a `Link` header at the commas between links, not at those inside an address.
fn split_links(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.split(move |character| {
        inside = match character {
            '<' => true,
            '>' => false,
            _ => inside,
        };
        character == ',' && !inside
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_every_way_to_write_it() {
        let next = |lines: &[&str]| {
            next_query(
                &lines
                    .iter()
                    .map(|line| (LINK, line.parse().expect("valid")))
                    .collect(),
            )
        };
        let found = Some("n=2&last=b".to_owned());
        assert_eq!(
            next(&[r#"</v2/a/tags/list?n=2&last=b>; rel="next""#]),
            found
        );
        assert_eq!(
            next(&["<https://r.io/v2/a/tags/list?n=2&last=b>;rel=next"]),
            found
        );
        assert_eq!(next(&[r#"<?n=2&last=b>; title="x"; Rel="NEXT""#]), found);
        assert_eq!(
            next(&["</first>; rel=first, <x?n=2&last=b>; rel=next"]),
            found
        );
        assert_eq!(
            next(&["</first>; rel=first", "<x?n=2&last=b>; rel=next"]),
            found
        );
        assert_eq!(next(&["<x?a=1,2>; rel=next"]), Some("a=1,2".to_owned()));
        for none in [
            "</x?n=1>; rel=prev",
            "</x>; rel=next",
            "nonsense",
            "<unclosed; rel=next",
            "<x?a=1>",
        ] {
            assert_eq!(next(&[none]), None, "{none}");
        }
        assert_eq!(next(&[]), None);
    }
}
