//! Who else is there: this node's identity, the members, and what each of them is responsible for.
//!
//! Readers take a [`View`], an immutable snapshot, and never wait for a lock. Which member is
//! suspect or dead is decided by `millrace_protocol::membership`, which placement by
//! `millrace_protocol::placement`; this room does their I/O. It carries no content: that is the
//! peer room's, which uses the identities and addresses that are found here.

mod file;
mod identity;
mod view;

pub use identity::{Identity, IdentityError};
pub use view::{Member, Standing, View};
