//! The account of the store, for operators and for metrics.

use std::path::PathBuf;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

use super::space::Disk;
use super::{Inner, Store};

/// The account of a store.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The data folder.
    pub root: PathBuf,
    /// Complete blobs and manifests.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Bytes taken by parts that grow: what has come of them, and some more.
    pub growing_bytes: u64,
    /// Bytes of parts that wait to be continued.
    pub suspended_bytes: u64,
    /// Bytes of blobs that no other node of the cluster was known to have when room was sought.
    pub spared_bytes: u64,
    /// Most bytes that all of these may take.
    pub max_bytes: u64,
    /// Free bytes that the file system keeps.
    pub min_free_bytes: u64,
    /// Free bytes of the file system now; absent when it cannot be asked.
    pub free_bytes: Option<u64>,
    /// Whether the index has been read or rebuilt; content is served either way.
    pub index_ready: bool,
}

impl Inner {
    pub(super) fn status(&self) -> Status {
        let limits = self.space.limits();
        let taken = self.space.taken();
        Status {
            root: self.layout.root().to_owned(),
            blobs: taken.blob_count,
            blob_bytes: taken.blobs,
            growing_bytes: taken.growing,
            suspended_bytes: taken.suspended,
            spared_bytes: self.spared.lock().bytes(),
            max_bytes: limits.max_size,
            min_free_bytes: limits.min_free,
            free_bytes: Disk::of(self.layout.root()).map(|disk| disk.free).ok(),
            index_ready: *self.index_ready.borrow(),
        }
    }
}

/// Reads the account when metrics are collected.
#[derive(Debug)]
pub(super) struct Gauges(pub(super) Store);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.status();
        let gauges = [
            ("blobs", "Complete blobs and manifests", status.blobs),
            (
                "blob_bytes",
                "Bytes of complete blobs and manifests",
                status.blob_bytes,
            ),
            (
                "growing_bytes",
                "Bytes taken by parts that grow",
                status.growing_bytes,
            ),
            (
                "suspended_bytes",
                "Bytes of parts that wait",
                status.suspended_bytes,
            ),
            (
                "spared_bytes",
                "Bytes of blobs that no other node was known to have",
                status.spared_bytes,
            ),
            (
                "max_bytes",
                "Most bytes that the store may take",
                status.max_bytes,
            ),
            (
                "free_bytes",
                "Free bytes of the file system",
                status.free_bytes.unwrap_or(0),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let name = format!("millrace_store_{name}");
            let encoder = encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        Ok(())
    }
}
