//! News of a blob for a node that has opened it: size, sources, chain, whole.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use millrace_protocol::chunk::{self, ChainValue};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::wire::message::{BlobNews, MAX_CHAIN_VALUES, OpenBlob, Refusal, Role};
use tokio::sync::watch;

use crate::pull::chains::{Chain, ChainPhase};
use crate::pull::negative::Wanted;
use crate::pull::origin::Origin;
use crate::pull::rank::Rank;
use crate::pull::refusal;
use crate::pull::table::Want;
use crate::pull::transfer::{Phase, State, Transfer, Waiter};
use crate::store::{BlobFile, Provenance};

use super::Shared;
use super::takers::Place;

/// Tells a node about a blob until it has all, then stays silent until the node leaves. Of a blob
/// that this node waits for others for, it tells only what is here, and then ends.
pub(super) fn tell(
    shared: Arc<Shared>,
    from: NodeId,
    question: OpenBlob,
) -> BoxStream<'static, Result<BlobNews, Refusal>> {
    let asked = Asked {
        shared,
        from,
        question,
    };
    let telling = async move {
        match asked.open().await {
            Ok((news, telling)) => {
                let rest = stream::unfold(telling, |mut telling| async move {
                    let news = telling.next().await?;
                    Some((news, telling))
                });
                stream::once(async { Ok(news) }).chain(rest).boxed()
            }
            Err(refusal) => stream::once(async { Err(refusal) }).boxed(),
        }
    };
    stream::once(telling).flatten().boxed()
}

struct Asked {
    shared: Arc<Shared>,
    from: NodeId,
    question: OpenBlob,
}

impl Asked {
    /// Waits until the first bytes are in hand, from wherever.
    async fn open(self) -> Result<(BlobNews, Telling), Refusal> {
        let inner = &self.shared.puller.inner;
        let digest = &self.question.digest;
        // Before the store is looked into: what is on its way now may be stored, and no longer be on
        // its way, by the time that the store was found to lack it.
        let under_way = inner.fillers.table.get(digest);
        let stored = inner.store.blob(digest).await;
        if let Some(blob) = stored.map_err(|_| Refusal::Unable)? {
            return Ok(self.stored(blob).await);
        }
        let under_way = inner.fillers.table.get(digest).or(under_way);
        if self.question.role == Role::Holder
            && let Some(transfer) = &under_way
            && !transfer.may_be_followed(self.has_greater_id())
        {
            return part_of(transfer).ok_or(Refusal::Absent);
        }
        if self.shared.unstorable.contains_key(digest) {
            return Err(Refusal::Unable);
        }
        let origins = self.shared.origins(&self.question.origins);
        let waiter = self.join(under_way, &origins)?;
        let refuse = |error| refusal::refusal(origins.first(), &error);
        waiter.confirmed().await.map_err(refuse)?;
        let mut watch = waiter.transfer.watch();
        let known = watch.wait_for(|state| state.size.is_some() || state.failure().is_some());
        let (size, provenance) = {
            let state = known.await.map_err(|_| Refusal::Unable)?;
            if state.window.is_some() {
                // What passes through memory only cannot be read by chunks.
                self.shared.unstorable.insert(*digest, ());
                return Err(Refusal::Unable);
            }
            (state.size.ok_or(Refusal::Unable)?, state.fetched_as())
        };
        let content = Content::Growing { waiter, watch };
        Ok(self.opened(size, &provenance, content))
    }

    /// Whether the id of who asks is greater than this node's.
    fn has_greater_id(&self) -> bool {
        let neighbours = &self.shared.puller.inner.neighbours;
        let neighbours = neighbours.as_ref();
        neighbours.is_some_and(|neighbours| self.from > neighbours.view().me())
    }

    /// Joins the transfer in the role that is asked for, or begins it; as a holder, only the one that was
    /// found under way.
    fn join(
        &self,
        under_way: Option<Arc<Transfer>>,
        origins: &[Origin],
    ) -> Result<Waiter, Refusal> {
        let fillers = &self.shared.puller.inner.fillers;
        let digest = &self.question.digest;
        let Some(rank) = Rank::of(self.question.role) else {
            let transfer = under_way.ok_or(Refusal::Absent)?;
            return Ok(transfer.join(&[], self.question.copy));
        };
        if self.question.copy {
            self.may_be_copied(rank)?;
        }
        if let Some(origin) = origins.first() {
            let refused = fillers.negative.check(origin, Wanted::Blob(*digest));
            refused.map_err(|error| refusal::refusal(Some(origin), &error))?;
        }
        let want = Want {
            rank,
            begun_elsewhere: self.question.have > 0,
            is_copy: self.question.copy,
        };
        let joined = fillers.table.join(digest, origins, want);
        if let Some(far) = joined.begun {
            let offered_by = self.question.copy.then_some(self.from);
            let transfer = &joined.waiter.transfer;
            transfer.change(|state| state.offered_by = offered_by);
            fillers.start(&joined.waiter.transfer, far);
        }
        Ok(joined.waiter)
    }

    /// Whether what is not stored here may be got for a copy.
    ///
    /// # Errors
    /// It is got anyway, for who waits for it, and is not to be raised for a copy; or a home is asked,
    /// which begins nothing for a copy: who asks a home has not got the blob, so others would be
    /// waited for here.
    fn may_be_copied(&self, rank: Rank) -> Result<(), Refusal> {
        if rank == Rank::Home {
            return Err(Refusal::Absent);
        }
        let table = &self.shared.puller.inner.fillers.table;
        let known = table.get(&self.question.digest);
        match known.is_some_and(|transfer| transfer.is_awaited()) {
            true => Err(Refusal::Unable),
            false => Ok(()),
        }
    }

    async fn stored(self, blob: BlobFile) -> (BlobNews, Telling) {
        let inner = &self.shared.puller.inner;
        let digest = &self.question.digest;
        let provenance = inner.store.provenance(digest).await;
        let blob = Arc::new(blob);
        let size = blob.size();
        let chain = inner.fillers.chains.watch(digest, &blob);
        self.opened(size, &provenance, Content::Stored { _blob: blob, chain })
    }

    fn opened(self, size: u64, provenance: &[Provenance], content: Content) -> (BlobNews, Telling) {
        let OpenBlob { digest, zone, .. } = &self.question;
        let takers = &self.shared.takers;
        let (place, sources) = if self.question.copy {
            (None, takers.sources(digest, self.from, zone, size))
        } else {
            let (place, sources) = takers.enter(digest, self.from, zone, size);
            (Some(place), sources)
        };
        let news = BlobNews::Opened {
            size,
            provenance: provenance.iter().map(refusal::name_of).collect(),
            sources,
        };
        let telling = Telling {
            content,
            told: 0,
            values: chain_length(size),
            told_whole: false,
            from_start: self.question.have == 0,
            place,
        };
        (news, telling)
    }
}

/// Returns news of the chunks that are here of a blob which comes from others; `None` if there are
/// none. Nobody is sent to those who take it from this node: they have less.
fn part_of(transfer: &Transfer) -> Option<(BlobNews, Telling)> {
    let state = transfer.state();
    let values = chain_length(state.size?);
    let chain: Vec<ChainValue> = state.chain.iter().take(values).cloned().collect();
    let is_no_use = state.is_doubted || state.failure().is_some() || state.window.is_some();
    if chain.is_empty() || is_no_use {
        return None;
    }
    let provenance = state.fetched_as();
    let news = BlobNews::Opened {
        size: state.size?,
        provenance: provenance.iter().map(refusal::name_of).collect(),
        sources: Vec::new(),
    };
    let telling = Telling {
        values: chain.len(),
        content: Content::Part(chain),
        told: 0,
        told_whole: false,
        from_start: false,
        place: None,
    };
    Some((news, telling))
}

/// Returns how many values there are to tell: one for each chunk but the last.
fn chain_length(size: u64) -> usize {
    let chunks = usize::try_from(chunk::count(size)).unwrap_or(0);
    chunks.saturating_sub(1)
}

/// Where the news come from.
enum Content {
    Stored {
        /// Keeps it from eviction while it is being taken.
        _blob: Arc<BlobFile>,
        chain: watch::Receiver<Chain>,
    },
    Growing {
        waiter: Waiter,
        watch: watch::Receiver<State>,
    },
    /// The values of the chunks that are here.
    Part(Vec<ChainValue>),
}

struct Telling {
    content: Content,
    /// How many values were told.
    told: usize,
    /// How many there are to tell.
    values: usize,
    told_whole: bool,
    /// Whether the taker had nothing of it when it came.
    from_start: bool,
    place: Option<Place>,
}

impl Telling {
    /// Returns the next news; waits for ever when there are none but of a part, which ends.
    async fn next(&mut self) -> Option<Result<BlobNews, Refusal>> {
        if self.told_whole {
            return std::future::pending().await;
        }
        let (told, values) = (self.told, self.values);
        let news = match &mut self.content {
            Content::Stored { chain, .. } => next_of_stored(chain, told, values).await,
            Content::Growing { waiter, watch } => {
                next_of_growing(waiter, watch, told, values).await
            }
            Content::Part(chain) => Ok(part(chain, told, values)?),
        };
        match &news {
            Ok(BlobNews::Chain { values, .. }) => self.told += values.len(),
            other => {
                self.told_whole = true;
                let place = self.place.as_mut().filter(|_| self.from_start);
                if let (Ok(BlobNews::Whole), Some(place)) = (other, place) {
                    place.told_whole();
                }
            }
        }
        Some(news)
    }
}

async fn next_of_stored(
    chain: &mut watch::Receiver<Chain>,
    told: usize,
    values: usize,
) -> Result<BlobNews, Refusal> {
    let news = |chain: &Chain| chain.values.len() > told || chain.phase != ChainPhase::Growing;
    let chain = chain.wait_for(news).await.map_err(|_| Refusal::Unable)?;
    match (part(&chain.values, told, values), chain.phase) {
        (_, ChainPhase::Bad) => Err(Refusal::Corrupt),
        (Some(news), _) => Ok(news),
        (None, _) => Ok(BlobNews::Whole),
    }
}

async fn next_of_growing(
    waiter: &Waiter,
    watch: &mut watch::Receiver<State>,
    told: usize,
    values: usize,
) -> Result<BlobNews, Refusal> {
    let news = |state: &State| {
        state.chain.len().min(values) > told
            || matches!(state.phase, Phase::Verified | Phase::Failed(_))
            || state.window.is_some()
    };
    let state = watch.wait_for(news).await.map_err(|_| Refusal::Unable)?;
    match (part(&state.chain, told, values), &state.phase) {
        (_, Phase::Failed(error)) => {
            let refusal = waiter.refusal(error);
            Err(refusal)
        }
        (Some(news), _) => Ok(news),
        // What passes through memory only cannot be read by chunks. Or it was found in the store
        // meanwhile, without a chain: who opens it again gets it.
        (None, _) if told < values || state.window.is_some() => Err(Refusal::Unable),
        (None, _) => Ok(BlobNews::Whole),
    }
}

/// Returns the next values to tell, without the one behind the last chunk.
fn part(chain: &[ChainValue], told: usize, values: usize) -> Option<BlobNews> {
    let end = chain.len().min(values).min(told + MAX_CHAIN_VALUES);
    let values = chain.get(told..end).filter(|values| !values.is_empty())?;
    Some(BlobNews::Chain {
        first: u32::try_from(told).ok()?,
        values: values.to_vec(),
    })
}
