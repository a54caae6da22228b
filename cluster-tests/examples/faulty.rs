//! A node that takes part in a cluster and gives other nodes wrong answers about blobs.
//!
//! `faulty FAULT serve --config FILE`: as `millrace serve`, with one of the faults of
//! [`Fault`]. Its own clients are served right, so a test can let it hold what it lies about.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use clap::Parser as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use millrace::cli::{self, Cli, Command};
use millrace::node::Node;
use millrace::peer::{ChunkEvent, Handler, PeerManifest, PeerTag};
use millrace::telemetry;
use millrace_cluster_tests::node::{Fault, PANIC};
use millrace_protocol::chunk::{CHUNK_BYTES, ChainHasher, ChainValue};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Algorithm;
use millrace_protocol::wire::message::{
    AskHolds, AskManifest, AskVouch, BlobNews, Cause, Holding, HoldingsChange, OpenBlob, Question,
    ReadChunks, RecallTag, Refusal, ResolveTag,
};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<()> {
    let installed = rustls::crypto::ring::default_provider().install_default();
    ensure!(installed.is_ok(), "another TLS provider is installed");
    let mut arguments = std::env::args();
    let program = arguments.next().context("a program has a name")?;
    let fault: Fault = arguments.next().context("which fault?")?.parse()?;
    let Command::Serve(serve) = Cli::parse_from([program].into_iter().chain(arguments)).command
    else {
        anyhow::bail!("it can only serve");
    };
    let Ok(loaded) = cli::load(serve.config.as_deref()) else {
        anyhow::bail!("the configuration is wrong");
    };
    telemetry::start(&loaded.config.log.level, loaded.config.log.formatter)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let disguise = |own| -> Arc<dyn Handler> { Arc::new(Faulty { own, fault }) };
    let node = Node::start_disguised(loaded.config, disguise).await?;
    terminate.recv().await;
    node.drain().await;
    Ok(())
}

/// A node's own answers, and what is wrong with them.
#[derive(Debug)]
struct Faulty {
    own: Arc<dyn Handler>,
    fault: Fault,
}

impl Handler for Faulty {
    fn open(
        &self,
        from: NodeId,
        question: OpenBlob,
    ) -> BoxStream<'static, Result<BlobNews, Refusal>> {
        let fault = self.fault;
        assert!(fault != Fault::Panic, "{PANIC}");
        let news = self.own.open(from, question);
        news.filter_map(move |news| async move {
            match news {
                Ok(BlobNews::Chain { .. } | BlobNews::Whole) if fault == Fault::NoChain => None,
                Ok(news) => Some(Ok(spoil_news(fault, news))),
                Err(refusal) => Some(Err(refusal)),
            }
        })
        .boxed()
    }

    fn read(&self, from: NodeId, question: ReadChunks) -> BoxStream<'static, ChunkEvent> {
        let fault = self.fault;
        let events = self.own.read(from, question);
        let events = events.map(move |event| spoil_chunk(fault, event));
        match fault {
            Fault::Break => stream::empty().boxed(),
            Fault::BreakLate => events.take(1).boxed(),
            Fault::Stall => events.take(1).chain(stream::pending()).boxed(),
            _ => events.boxed(),
        }
    }

    fn manifest(
        &self,
        from: NodeId,
        question: AskManifest,
    ) -> BoxFuture<'static, Result<PeerManifest, Refusal>> {
        let fault = self.fault;
        let manifest = self.own.manifest(from, question);
        async move {
            let mut manifest = manifest.await?;
            if fault == Fault::Flip {
                manifest.bytes = flip(&manifest.bytes);
            }
            Ok(manifest)
        }
        .boxed()
    }

    fn resolve(
        &self,
        from: NodeId,
        question: ResolveTag,
    ) -> BoxFuture<'static, Result<PeerTag, Refusal>> {
        self.own.resolve(from, question)
    }

    fn recall(&self, from: NodeId, question: RecallTag) -> BoxFuture<'static, Option<PeerTag>> {
        self.own.recall(from, question)
    }

    fn holds(&self, from: NodeId, question: AskHolds) -> BoxFuture<'static, Vec<Holding>> {
        self.own.holds(from, question)
    }

    fn vouch(
        &self,
        from: NodeId,
        question: AskVouch,
    ) -> BoxFuture<'static, Result<Duration, Refusal>> {
        self.own.vouch(from, question)
    }

    fn follow(&self, from: NodeId) -> BoxStream<'static, HoldingsChange> {
        self.own.follow(from)
    }

    fn waits_for(&self, question: &Question) -> Cause {
        self.own.waits_for(question)
    }

    fn others(&self, from: NodeId, question: ReadChunks) -> Vec<NodeId> {
        self.own.others(from, question)
    }
}

fn spoil_news(fault: Fault, news: BlobNews) -> BlobNews {
    match (fault, news) {
        (
            Fault::Longer | Fault::Shorter,
            BlobNews::Opened {
                size,
                provenance,
                sources,
            },
        ) => BlobNews::Opened {
            size: match fault {
                Fault::Longer => size + CHUNK_BYTES,
                _ => size.saturating_sub(CHUNK_BYTES),
            },
            provenance,
            sources,
        },
        (Fault::Chain, BlobNews::Chain { first, values }) => BlobNews::Chain {
            first,
            values: vec![ChainValue::start(Algorithm::Sha256); values.len()],
        },
        (Fault::Content, BlobNews::Chain { first, values }) => BlobNews::Chain {
            first,
            values: values_of_other_content(first, values.len()),
        },
        (_, news) => news,
    }
}

fn spoil_chunk(fault: Fault, event: ChunkEvent) -> ChunkEvent {
    let ChunkEvent::Chunk { index, bytes } = event else {
        return event;
    };
    let bytes = match fault {
        Fault::Flip => bytes.iter().map(flip).collect(),
        Fault::Content => {
            let length = bytes.iter().map(Bytes::len).sum();
            vec![other_content(index, length)]
        }
        _ => bytes,
    };
    ChunkEvent::Chunk { index, bytes }
}

/// Returns the same with its first bit flipped.
fn flip(bytes: &Bytes) -> Bytes {
    let mut flipped = BytesMut::from(&bytes[..]);
    if let Some(first) = flipped.first_mut() {
        *first ^= 0x80;
    }
    flipped.freeze()
}

/// Returns the bytes of a chunk of the content that is given instead of any.
fn other_content(index: u32, length: usize) -> Bytes {
    vec![index.to_le_bytes()[0]; length].into()
}

/// Returns values of the chain of that content, of which each chunk is full.
fn values_of_other_content(first: u32, count: usize) -> Vec<ChainValue> {
    let mut hasher = ChainHasher::new(Algorithm::Sha256);
    let length = usize::try_from(CHUNK_BYTES).expect("a chunk fits into memory");
    let mut values = Vec::new();
    for index in 0.. {
        if values.len() >= first as usize + count {
            break;
        }
        hasher.update(&other_content(index, length), |value| values.push(value));
    }
    values.split_off(first as usize)
}
