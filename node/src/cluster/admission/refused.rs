//! Why a connection that somebody else has dialled came to nothing, as it is counted.
//!
//! The gate sees only who comes as far as the gate, and is dropped when the time is over. So this reads
//! what the network tells of the whole way from the listener to the gate. It counts nothing itself.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::iter;

use libp2p::TransportError;
use libp2p::core::transport::timeout::TransportTimeoutError;
use libp2p::core::upgrade::NegotiationError;
use libp2p::swarm::ListenError;

use super::super::metrics::Refused;
use super::Refusal;

/// Returns what an end of an incoming connection counts as; `None` if the other end is not to blame.
pub(in crate::cluster) fn refused(error: &ListenError) -> Option<Refused> {
    match error {
        // Of all behaviours only the limits deny anybody.
        ListenError::Denied { .. } => Some(Refused::Crowded),
        ListenError::Transport(TransportError::Other(error)) => {
            match causes(error).find_map(told_by) {
                Some(Told::Refused(reason)) => Some(reason),
                Some(Told::Blameless) => None,
                None => Some(Refused::Nonsense),
            }
        }
        ListenError::Transport(TransportError::MultiaddrNotSupported(_))
        | ListenError::Aborted
        | ListenError::WrongPeerId { .. }
        | ListenError::LocalPeerId { .. } => None,
    }
}

/// What one cause of an end says about it.
enum Told {
    Refused(Refused),
    /// The other end is not to blame.
    Blameless,
}

/// Returns what one cause says about it, if it says anything.
fn told_by(cause: &(dyn Error + 'static)) -> Option<Told> {
    if let Some(refusal) = cause.downcast_ref::<Refusal>() {
        return match refusal {
            Refusal::Secret => Some(Told::Refused(Refused::Secret)),
            Refusal::Denied => Some(Told::Refused(Refused::Denied)),
            Refusal::Identity | Refusal::Duplicate => Some(Told::Refused(Refused::Identity)),
            Refusal::Myself | Refusal::Random => Some(Told::Blameless),
            // Its own cause says how.
            Refusal::Broken(_) => None,
        };
    }
    if let Some(TransportTimeoutError::Timeout) =
        cause.downcast_ref::<TransportTimeoutError<io::Error>>()
    {
        return Some(Told::Refused(Refused::Timeout));
    }
    // A listener rejects no protocol by itself: whoever got no further has gone.
    let has_gone = matches!(cause.downcast_ref(), Some(NegotiationError::Failed))
        || cause.downcast_ref().is_some_and(is_of_who_has_gone);
    has_gone.then_some(Told::Refused(Refused::Broken))
}

fn is_of_who_has_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
    )
}

/// Returns everything that led to `error`, the outermost first.
///
/// An error of I/O that carries another one does not name that as its source, but the source of that.
pub(in crate::cluster) fn causes(
    error: &io::Error,
) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(Some(error as &(dyn Error + 'static)), |cause| {
        let carried = (*cause).downcast_ref().and_then(io::Error::get_ref);
        match carried {
            Some(carried) => Some(carried as &(dyn Error + 'static)),
            None => (*cause).source(),
        }
    })
}
