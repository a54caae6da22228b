//! Asking what a tag points to: its home, the upstream, at last the members' memory.
//!
//! A tag has a home as content has, so a fleet asks the upstream once for it. Answers carry their
//! age and questions their greatest, so that lifetimes do not add up over hops. What an answer is
//! worth, and what is remembered of it, is decided in `tag`.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millrace_protocol::oci::{Digest, Reference, Tag};
use millrace_protocol::placement::Key;
use millrace_protocol::wire::message::{RecallTag, Refusal, ResolveTag, Role};
use tokio::time::Instant;

use crate::peer::{PeerError, PeerTag};
use crate::upstream::{FetchedManifest, Subject};

use super::deadline::HEADER_BUDGET;
use super::error::PullError;
use super::neighbours::{HOPS_PATIENCE, Neighbours};
use super::origin::Origin;
use super::rank::Rank;
use super::refusal;
use super::waits::Waits;

/// Time that members have to say what they remember.
const RECALL_PATIENCE: Duration = Duration::from_secs(1);

/// What a tag points to.
#[derive(Debug)]
pub(super) enum Resolved {
    /// A digest that can be had by itself.
    Digest(Digest),
    /// The manifest itself, because the upstream tells no digest without it.
    Manifest(FetchedManifest),
}

/// What another node told of a tag.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) answer: PeerTag,
    /// When it was asked.
    asked: Instant,
}

impl Told {
    /// Returns how old the answer is by now: rather too old than too young, since it is counted from
    /// before the way of the question.
    pub(super) fn age(&self) -> Duration {
        self.answer.age.saturating_add(self.asked.elapsed())
    }
}

/// Asks the upstream: one `HEAD`; a `GET` where that tells no digest.
///
/// # Errors
/// Why the upstream does not tell.
pub(super) async fn ask_upstream(
    waits: &Waits,
    origin: &Origin,
    tag: &Tag,
) -> Result<Resolved, PullError> {
    let Origin {
        upstream,
        repository,
    } = origin;
    let _waiting = waits.begin(Key::of_tag(upstream.name(), repository, tag));
    let reference = Reference::Tag(tag.clone());
    let deadline = Instant::now() + HEADER_BUDGET;
    let head = upstream
        .head_manifest(repository, &reference, deadline)
        .await?;
    let is_schema1 = head
        .media_type
        .is_some_and(|media_type| media_type.is_schema1());
    if let Some(digest) = head.digest.filter(|_| !is_schema1) {
        return Ok(Resolved::Digest(digest));
    }
    let fetched = upstream
        .fetch_manifest(repository, &reference, deadline)
        .await?;
    Ok(Resolved::Manifest(fetched))
}

/// Asks the tag's homes, where this node is none.
///
/// `None` when this node has to ask the upstream itself.
/// # Errors
/// A refusal that is final for this origin.
pub(super) async fn ask_homes(
    neighbours: &Neighbours,
    origin: &Origin,
    tag: &Tag,
    max_age: Duration,
) -> Result<Option<Told>, PullError> {
    let key = Key::of_tag(origin.upstream.name(), &origin.repository, tag);
    let deadline = Instant::now() + HOPS_PATIENCE;
    let hops = neighbours.hops(key, Rank::Owner);
    for hop in hops.iter().filter(|hop| hop.role == Role::Home) {
        if Instant::now() >= deadline {
            break;
        }
        let question = ResolveTag {
            origin: refusal::origin_name(origin),
            tag: tag.clone(),
            max_age_ms: u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX),
        };
        let asked = Instant::now();
        let asking = neighbours.peers.resolve(hop.peer, question);
        match neighbours.in_time(*hop, asking).await {
            Ok(answer) => return Ok(Some(Told { answer, asked })),
            Err(error) => {
                neighbours.passed_over(*hop, &error);
                if let PeerError::Refused { refusal, .. } = &error {
                    check_final(origin, tag, refusal)?;
                }
            }
        }
    }
    Ok(None)
}

fn check_final(origin: &Origin, tag: &Tag, refused: &Refusal) -> Result<(), PullError> {
    let reference = Reference::Tag(tag.clone());
    let subject = Subject::Manifest(origin.repository.clone(), reference);
    refusal::final_for(origin, refused, subject).map_or(Ok(()), Err)
}

/// Returns the youngest that any member remembers of a tag.
pub(super) async fn recall(neighbours: &Neighbours, origin: &Origin, tag: &Tag) -> Option<Told> {
    let asked = Instant::now();
    let view = neighbours.view();
    let mut answers: FuturesUnordered<_> = view
        .live()
        .map(|member| {
            let question = RecallTag {
                upstream: origin.upstream.name().to_owned(),
                repository: origin.repository.clone(),
                tag: tag.clone(),
            };
            let recalled = neighbours.peers.recall(member.id, question);
            tokio::time::timeout(RECALL_PATIENCE, recalled)
        })
        .collect();
    let mut youngest: Option<PeerTag> = None;
    while let Some(answer) = answers.next().await {
        let Ok(Ok(Some(answer))) = answer else {
            continue;
        };
        if youngest.as_ref().is_none_or(|known| answer.age < known.age) {
            youngest = Some(answer);
        }
    }
    youngest.map(|answer| Told { answer, asked })
}
