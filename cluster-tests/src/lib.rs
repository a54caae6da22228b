//! The test harness: real nodes, real registries and real clients on this machine.
//!
//! Everything listens on loopback, on ports that were free, and keeps its data in temporary
//! folders; what a test started is killed when the test lets go of it. A component that is
//! missing fails the test with the command that installs it: nothing is skipped.
//!
//! ```text
//! fake       a registry that misbehaves on demand
//! upstream   a `docker-registry` process with its log of requests
//! corp       a node in front of it, under the names that tests use
//! client     skopeo, podman, buildah, dockerd, containerd
//! repository one repository over plain HTTP, compared byte by byte
//! image      test images, built here
//! link       a network link whose rate is set, or that is late
//! netns      hosts in network namespaces: limited links, splits, two sites; needs root
//! proxy      an HTTP proxy
//! node       a `millrace` process: start, restart, kill, metrics, status
//! fleet      several nodes that are one cache
//! http       a raw HTTP/1.1 client that shows how a body ended
//! port       addresses that stay free while nobody listens on them
//! condition  waiting for something to become true
//! load       clients, rivals and meters of the benchmarks
//! process    a child process, its log, its end
//! disk       a small file system
//! descriptors  taking file descriptors away from it
//! clock      a clock of processes that is set back and forth
//! trace      what a node does to its files, and in which order
//! processes  keeping it from starting others
//! component  the programs of the distribution that tests use
//! ```

pub mod client;
pub mod clock;
pub mod component;
pub mod condition;
pub mod corp;
pub mod descriptors;
pub mod disk;
pub mod fake;
pub mod fleet;
pub mod http;
pub mod image;
pub mod link;
pub mod load;
pub mod netns;
pub mod node;
pub mod pki;
pub mod port;
pub mod process;
pub mod processes;
pub mod proxy;
pub mod repository;
pub mod trace;
pub mod upstream;
