//! What nodes say to each other holds no credential, in whatever they ask and answer.

#[path = "upstream/fake.rs"]
#[expect(dead_code, reason = "shared with the tests of the upstream room")]
mod fake;
#[path = "mesh/mesh.rs"]
#[expect(dead_code, reason = "shared with the tests of pulls")]
mod mesh;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use mesh::{Mesh, Settings, prompt};
use millrace::peer::{ChunkEvent, Handler, PeerManifest, PeerTag, Peers};
use millrace_protocol::node_id::NodeId;
use millrace_protocol::oci::Digest;
use millrace_protocol::wire::frame;
use millrace_protocol::wire::message::{
    AskHolds, AskManifest, AskVouch, BlobNews, Holding, HoldingsChange, OpenBlob, OriginName,
    Question, ReadChunks, RecallTag, Refusal, ResolveTag, Role,
};
use parking_lot::Mutex;

const USER: &str = "ci";
const PASSWORD: &str = "zzmarkedzz";

/// Everything that was said, as it travels or as it is shown.
#[derive(Clone, Debug, Default)]
struct Record(Arc<Mutex<Vec<u8>>>);

impl Record {
    fn question(&self, question: &Question) {
        let frame = frame::encode(question).expect("a message within its bounds");
        self.0.lock().extend(frame);
    }

    fn answer(&self, answer: &impl Debug) {
        self.0.lock().extend(format!("{answer:?}\n").into_bytes());
    }

    fn contains(&self, text: &str) -> bool {
        let said = self.0.lock();
        said.windows(text.len()).any(|said| said == text.as_bytes())
    }
}

/// A node that can give nothing and writes down what it is asked.
#[derive(Debug)]
struct Scribe(Record);

impl Handler for Scribe {
    fn open(&self, _: NodeId, asked: OpenBlob) -> BoxStream<'static, Result<BlobNews, Refusal>> {
        self.0.question(&Question::Open(asked));
        stream::iter([Err(Refusal::Unable)]).boxed()
    }

    fn read(&self, _: NodeId, asked: ReadChunks) -> BoxStream<'static, ChunkEvent> {
        self.0.question(&Question::Read(asked));
        stream::iter([ChunkEvent::Absent]).boxed()
    }

    fn manifest(
        &self,
        _: NodeId,
        asked: AskManifest,
    ) -> BoxFuture<'static, Result<PeerManifest, Refusal>> {
        self.0.question(&Question::Manifest(asked));
        async { Err(Refusal::Unable) }.boxed()
    }

    fn resolve(
        &self,
        _: NodeId,
        asked: ResolveTag,
    ) -> BoxFuture<'static, Result<PeerTag, Refusal>> {
        self.0.question(&Question::Resolve(asked));
        async { Err(Refusal::Unable) }.boxed()
    }

    fn recall(&self, _: NodeId, asked: RecallTag) -> BoxFuture<'static, Option<PeerTag>> {
        self.0.question(&Question::Recall(asked));
        async { None }.boxed()
    }

    fn holds(&self, _: NodeId, asked: AskHolds) -> BoxFuture<'static, Vec<Holding>> {
        let answer = vec![Holding::No; asked.digests.len()];
        self.0.question(&Question::Holds(asked));
        async { answer }.boxed()
    }

    fn vouch(&self, _: NodeId, asked: AskVouch) -> BoxFuture<'static, Result<Duration, Refusal>> {
        self.0.question(&Question::Vouch(asked));
        async { Err(Refusal::Unable) }.boxed()
    }

    fn follow(&self, _: NodeId) -> BoxStream<'static, HoldingsChange> {
        stream::pending().boxed()
    }
}

/// Asks a node for everything that it was asked for by its clients, and for what is refused.
async fn ask_all(peers: &Peers, peer: NodeId, said: &Record, blob: Digest, manifest: Digest) {
    for repository in ["team/app", "team/none"] {
        let origin = OriginName {
            upstream: "corp".to_owned(),
            repository: repository.parse().expect("a name"),
            credential: USER.to_owned(),
        };
        for digest in [blob, manifest, Digest::of(blob.algorithm(), b"nothing")] {
            for role in [Role::Holder, Role::Home] {
                let origins = vec![origin.clone()];
                let question = OpenBlob {
                    digest,
                    role,
                    origins: origins.clone(),
                    zone: "a".to_owned(),
                    have: 0,
                    copy: false,
                };
                let mut news = peers.open(peer, question).await.expect("it answers");
                said.answer(&news.next().await);
                let question = AskManifest {
                    digest,
                    role,
                    origins,
                };
                said.answer(&peers.manifest(peer, question).await);
                let question = AskVouch {
                    digest,
                    is_manifest: role == Role::Home,
                    origin: origin.clone(),
                    max_age_ms: 0,
                };
                said.answer(&peers.vouch(peer, question).await);
            }
        }
        let tag: millrace_protocol::oci::Tag = "latest".parse().expect("a tag");
        let question = ResolveTag {
            origin: origin.clone(),
            tag: tag.clone(),
            max_age_ms: 0,
        };
        said.answer(&peers.resolve(peer, question).await);
        let question = RecallTag {
            upstream: origin.upstream,
            repository: origin.repository,
            tag,
        };
        said.answer(&peers.recall(peer, question).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_question_and_no_answer_holds_a_credential() {
    let settings = Settings {
        login: Some((USER.to_owned(), PASSWORD.to_owned())),
        ..Settings::default()
    };
    let mesh = Mesh::strangers_with(&["a"], settings).await;
    let pair = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
    mesh.content.guard(&format!("Basic {pair}"));
    let blob = mesh.content.add(vec![5; 3_000_000]);
    let manifest = mesh.content.add(b"{\"schemaVersion\":2}".to_vec());
    mesh.content.tag("latest", &manifest);
    let said = Record::default();
    let peers = mesh.add_home(Arc::new(Scribe(said.clone())));
    let node = &mesh.nodes[0];
    prompt(node.pull(&blob)).await.expect("pulled");
    for reference in ["latest", &manifest.to_string()] {
        prompt(node.manifest(reference)).await.expect("pulled");
    }
    for status in [Some(403), None] {
        *mesh.content.broken.lock() = status;
        prompt(ask_all(&peers, node.id, &said, blob, manifest)).await;
    }
    assert!(!mesh.upstream.seen("/blobs/").is_empty());
    for shown in ["team/app", &manifest.to_string(), "Denied"] {
        assert!(said.contains(shown), "{shown} was not said");
    }
    for secret in [PASSWORD, pair.as_str()] {
        assert!(!said.contains(secret), "{secret} was said");
    }
}
