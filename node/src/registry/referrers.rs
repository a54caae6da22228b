//! end-12: the manifests that refer to a digest.
//!
//! An upstream is always asked without a filter, because some answer a filtered request with
//! nothing; the filter is applied here. An upstream's error is an error here too: an empty list
//! would say "unsigned" (CLIENT-CONTRACT F6).

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderValue, LINK};
use millrace_protocol::oci::route::{self, Route};
use millrace_protocol::oci::{Digest, ErrorCode, MediaType};
use serde_json::Value;

use crate::pull::{Origin, Puller};

use super::answer::{Answer, OCI_FILTERS_APPLIED};
use super::respond::{Failure, Wanted};

/// The only filter that the specification knows.
const ARTIFACT_TYPE: &str = "artifactType";

/// Answers with a page of referrers.
pub(super) async fn list<U>(
    puller: &Puller,
    origin: &Origin,
    (route, digest): (&Route<'_, U>, &Digest),
    query: Option<&str>,
) -> Result<Answer, Failure> {
    let query = query.unwrap_or_default();
    let wanted = route::query_value(query, ARTIFACT_TYPE).filter(|wanted| !wanted.is_empty());
    let asked = route::query_without(query, &["ns", ARTIFACT_TYPE]);
    let page = puller.referrers(origin, digest, &asked).await;
    let page = page.map_err(|error| Failure::Pull(Wanted::Referrers, error))?;
    let (body, filters) = match &wanted {
        Some(wanted) => {
            let body = filter(&page.body, wanted).ok_or_else(malformed)?;
            (body, Some(HeaderValue::from_static(ARTIFACT_TYPE)))
        }
        None => {
            let filters = page.filters_applied.as_deref();
            (
                page.body,
                filters.and_then(|text| HeaderValue::from_str(text).ok()),
            )
        }
    };
    let media_type = HeaderValue::from_static(MediaType::OCI_INDEX);
    let mut answer = Answer::full(StatusCode::OK, media_type, body);
    if let Some(filters) = filters {
        answer.headers.insert(&OCI_FILTERS_APPLIED, filters);
    }
    if let Some(mut next) = page.next_query {
        if let Some(wanted) = &wanted {
            route::query_push(&mut next, ARTIFACT_TYPE, wanted);
        }
        if let Ok(link) = HeaderValue::try_from(route.next_link(&next)) {
            answer.headers.insert(LINK, link);
        }
    }
    Ok(answer)
}

fn malformed() -> Failure {
    Failure::because(
        ErrorCode::Unavailable,
        "the upstream's list of referrers is not an index",
    )
}

/// Keeps the descriptors of this artifact type; `None` when the body is not an index.
fn filter(index: &[u8], wanted: &str) -> Option<Bytes> {
    let mut index: Value = serde_json::from_slice(index).ok()?;
    let manifests = index.get_mut("manifests")?.as_array_mut()?;
    manifests.retain(|manifest| {
        manifest
            .get(ARTIFACT_TYPE)
            .is_some_and(|kind| kind == wanted)
    });
    serde_json::to_vec(&index).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_type_is_kept() {
        let index = br#"{"schemaVersion":2,"manifests":[
            {"digest":"a","artifactType":"application/x+json"},{"digest":"b"},
            {"digest":"c","artifactType":"other"}]}"#;
        let kept = filter(index, "application/x+json").expect("an index");
        let kept: Value = serde_json::from_slice(&kept).expect("valid JSON");
        assert_eq!(kept["schemaVersion"], 2);
        let manifests = kept["manifests"].as_array().expect("a list");
        assert_eq!(manifests.len(), 1);
        assert_eq!(manifests[0]["digest"], "a");
    }

    #[test]
    fn what_is_no_index_is_not_an_empty_one() {
        for body in [&b"<html>"[..], b"{}", b"[]", br#"{"manifests":{}}"#] {
            assert_eq!(filter(body, "x"), None);
        }
    }
}
