//! Asking the homes of content whether it belongs to a repository, before the upstream is asked.
//!
//! The home by placement keeps the links of the content for the cluster. Its word counts for the
//! very same provenance only, credential included, and is as old as what the upstream said to it.
//! A home that cannot be asked is passed over: then this node asks the upstream itself.

use millrace_protocol::oci::{Digest, Reference};
use millrace_protocol::wire::message::AskVouch;
use tokio::time::{Instant, timeout};

use crate::peer::PeerError;
use crate::upstream::Subject;

use super::super::error::PullError;
use super::super::neighbours::{HOPS_PATIENCE, Hop, Neighbours};
use super::super::origin::Origin;
use super::super::refusal;
use super::{Access, Form};

impl Access {
    /// Returns since when the upstream is known to say that the repository has this content, or
    /// that it does not; `None` when no home says either.
    pub(super) async fn ask_homes(
        &self,
        origin: &Origin,
        digest: &Digest,
        form: Form,
        homes: &[Hop],
    ) -> Option<Result<Instant, PullError>> {
        let neighbours = self.inner.neighbours.as_ref()?;
        let max_age = self
            .inner
            .standings
            .max_age(&origin.provenance(), (*digest, form));
        let question = AskVouch {
            digest: *digest,
            is_manifest: form == Form::Manifest,
            origin: refusal::origin_name(origin),
            max_age_ms: u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX),
        };
        let asking = async {
            for home in homes {
                if let Some(said) = ask_home(neighbours, *home, origin, &question).await {
                    return Some(said);
                }
            }
            None
        };
        timeout(HOPS_PATIENCE, asking).await.unwrap_or_default()
    }
}

async fn ask_home(
    neighbours: &Neighbours,
    home: Hop,
    origin: &Origin,
    question: &AskVouch,
) -> Option<Result<Instant, PullError>> {
    // Its age is counted from before the way of the answer: rather too old than too young.
    let asked = Instant::now();
    let error = match neighbours.peers.vouch(home.peer, question.clone()).await {
        // Older than what was asked for counts as no answer.
        Ok(age) if age.as_millis() > u128::from(question.max_age_ms) => return None,
        Ok(age) => return asked.checked_sub(age).map(Ok),
        Err(error) => error,
    };
    if let PeerError::Refused { refusal, .. } = &error
        && let Some(refused) = refusal::final_for(origin, refusal, subject(origin, question))
    {
        return Some(Err(refused));
    }
    neighbours.passed_over(home, &error);
    None
}

fn subject(origin: &Origin, question: &AskVouch) -> Subject {
    let repository = origin.repository.clone();
    match question.is_manifest {
        true => Subject::Manifest(repository, Reference::Digest(question.digest)),
        false => Subject::Blob(repository, question.digest),
    }
}
