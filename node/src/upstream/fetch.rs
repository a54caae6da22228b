//! From a request to an answer: who is asked, how often, and until when.
//!
//! The primary URL is asked first and its word on what exists is final; fallbacks stand in when
//! it does not answer. All of it happens inside the caller's deadline. What one attempt does is
//! `attempt`'s.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::Response;
use tokio::time::Instant;

use super::Inner;
use super::attempt::{Attempt, Request};
use super::breaker::BreakerState;
use super::budget::Pause;
use super::credential::LoginError;
use super::endpoint::{Admission, Closed, Endpoint};
use super::error::{Defect, FetchError, Outage, Subject};
use super::metrics::Outcome;
use super::shortage::Shortage;
use super::status::LastError;
use super::turns::Turn;

/// Rounds after the first: together with the pauses a hiccup of about a second is bridged.
const RETRIES: usize = 2;

/// Pause before the first retry; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause between retries.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The headers of an answer, and the right to read its body.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) turn: Turn,
}

impl Inner {
    /// Sends `request` until it is answered, refused for good, or the deadline is near.
    ///
    /// # Errors
    /// The primary URL's last word; [`FetchError::Busy`] when no request may be sent in time.
    /// # Cancel safety
    /// Dropping the future ends the request that is under way.
    pub(super) async fn fetch(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Answer, FetchError> {
        let turn = self.turns.take(request.is_for_blob());
        let turn = tokio::time::timeout_at(deadline, turn).await;
        let turn = turn.map_err(|_| FetchError::Busy {
            upstream: self.name.clone(),
            limit: self.turns.max_requests(),
        })?;
        self.fetch_in(turn, request, deadline).await
    }

    /// Sends `request`, whose turn it is, until it is answered, refused for good, or the deadline
    /// is near.
    ///
    /// # Errors
    /// The primary URL's last word.
    /// # Cancel safety
    /// Dropping the future ends the request that is under way.
    pub(super) async fn fetch_in(
        &self,
        turn: Turn,
        request: &Request,
        deadline: Instant,
    ) -> Result<Answer, FetchError> {
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_max_times(RETRIES)
            .with_jitter()
            .build();
        // Fallbacks that have said no; a second question would get the same answer.
        let mut useless = vec![false; self.endpoints.len()];
        loop {
            let error = match self.round(request, deadline, &mut useless).await {
                Ok(response) => return Ok(Answer { response, turn }),
                Err(error) => error,
            };
            let pause = pauses.next().filter(|_| is_passing(&error));
            let Some(wake) = pause
                .map(|pause| Instant::now() + pause)
                .filter(|wake| *wake < deadline)
            else {
                tracing::debug!(
                    upstream = &*self.name, kind = ?request.kind, subject = %request.subject,
                    %error, "upstream request failed"
                );
                return Err(error);
            };
            tokio::time::sleep_until(wake).await;
        }
    }

    /// Asks the endpoints in order; the error is the primary's.
    async fn round(
        &self,
        request: &Request,
        deadline: Instant,
        useless: &mut [bool],
    ) -> Result<Response, FetchError> {
        let mut primary: Option<FetchError> = None;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if useless[index] {
                continue;
            }
            let after = useless[index + 1..]
                .iter()
                .filter(|useless| !**useless)
                .count();
            let until = share(deadline, after);
            match self.attempt(endpoint, request, until, deadline).await {
                Ok(response) => return Ok(response),
                Err(error) if index == 0 && !opens_fallback(&error) => return Err(error),
                Err(error) if index == 0 => primary = Some(error),
                Err(error) => useless[index] = !matches!(error, FetchError::Unavailable { .. }),
            }
        }
        Err(primary.expect("the primary endpoint is asked in every round"))
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        until: Instant,
        deadline: Instant,
    ) -> Result<Response, FetchError> {
        let admission = match endpoint.admit(request.counts()) {
            Ok(admission) => admission,
            Err(Closed::Limited(pause)) => return Err(self.rate_limited(pause)),
            Err(Closed::BreakerOpen) => return Err(self.unavailable(Outage::BreakerOpen)),
        };
        let result = Attempt {
            inner: self,
            endpoint,
            request,
            until,
        }
        .run()
        .await;
        let result = result.map_err(|error| match error {
            // Its share of the time is over, not the caller's.
            FetchError::Unavailable {
                reason: Outage::Deadline,
                ..
            } if until < deadline => self.unavailable(Outage::Silent(admission.elapsed())),
            error => error,
        });
        self.metrics.count_request(request.kind, outcome(&result));
        self.note(endpoint, admission, result.as_ref().err());
        result
    }

    /// Keeps what an attempt says about the endpoint's health.
    fn note(&self, endpoint: &Endpoint, admission: Admission<'_>, error: Option<&FetchError>) {
        if let Some(FetchError::Shortage { .. }) = error {
            // Nothing was learnt, not even that it is still there.
            return;
        }
        match error {
            Some(FetchError::Unavailable {
                reason: Outage::Credentials(_),
                ..
            }) => drop(admission),
            // A caller in a hurry must not close the door for all others.
            Some(FetchError::Unavailable {
                reason: Outage::Deadline,
                ..
            }) if admission.elapsed() < self.timeouts.connect => drop(admission),
            Some(FetchError::Unavailable { .. }) => admission.handle_failure(),
            Some(_) | None => admission.handle_answer(),
        }
        let failed = matches!(error, Some(FetchError::Unavailable { .. }));
        self.last_failed.store(failed, Ordering::Relaxed);
        if let Some(error) = error.filter(|error| !error.is_denial()) {
            self.note_error(error);
        }
        if std::ptr::eq(endpoint, &raw const self.endpoints[0]) {
            self.metrics
                .set_breaker_open(endpoint.breaker_state() != BreakerState::Closed);
        }
    }

    /// Keeps an error for the status.
    pub(super) fn note_error(&self, error: &FetchError) {
        *self.last_error.lock() = Some(LastError {
            at: SystemTime::now(),
            message: error.to_string(),
        });
    }

    pub(super) fn rate_limited(&self, pause: Pause) -> FetchError {
        FetchError::RateLimited {
            upstream: self.name.clone(),
            limit: pause.limit,
            retry_at: Some(pause.until),
        }
    }

    pub(super) fn unavailable(&self, reason: Outage) -> FetchError {
        FetchError::Unavailable {
            upstream: self.name.clone(),
            reason,
        }
    }

    pub(super) fn no_login(&self, error: LoginError) -> FetchError {
        match error {
            LoginError::Shortage(shortage) => self.shortage(shortage),
            LoginError::Credentials(error) => self.unavailable(Outage::Credentials(error)),
        }
    }

    /// Says in the log, too, what this node lacks.
    pub(super) fn shortage(&self, shortage: Shortage) -> FetchError {
        self.clients.alarm.raise(shortage);
        FetchError::Shortage {
            upstream: self.name.clone(),
            shortage,
        }
    }

    pub(super) fn bad_answer(&self, subject: &Arc<Subject>, defect: Defect) -> FetchError {
        FetchError::BadAnswer {
            upstream: self.name.clone(),
            subject: subject.clone(),
            defect,
        }
    }
}

/// Returns until when one endpoint may be waited for when `after` others are still to be asked.
fn share(deadline: Instant, after: usize) -> Instant {
    let now = Instant::now();
    let parties = u32::try_from(after).unwrap_or(u32::MAX).saturating_add(1);
    if after == 0 {
        deadline
    } else {
        now + deadline.saturating_duration_since(now) / parties
    }
}

/// Whether fallbacks may stand in for a primary that failed so.
fn opens_fallback(error: &FetchError) -> bool {
    match error {
        FetchError::RateLimited { .. } => true,
        FetchError::Unavailable { reason, .. } => !matches!(reason, Outage::Credentials(_)),
        FetchError::NotFound { .. }
        | FetchError::Denied { .. }
        | FetchError::Busy { .. }
        // They would lack the same.
        | FetchError::Shortage { .. }
        | FetchError::TooLarge { .. }
        | FetchError::BadAnswer { .. } => false,
    }
}

/// Whether the failure may be over in a moment.
fn is_passing(error: &FetchError) -> bool {
    let reason = match error {
        FetchError::Shortage { .. } => return true,
        FetchError::Unavailable { reason, .. } => reason,
        _ => return false,
    };
    match reason {
        Outage::Connect(_)
        | Outage::Proxy { .. }
        | Outage::Silent(_)
        | Outage::Broken(_)
        | Outage::TokenService(_) => true,
        Outage::Status(status) => *status != 501,
        Outage::Interrupted | Outage::Stalled => true,
        Outage::Deadline | Outage::BreakerOpen | Outage::Credentials(_) => false,
    }
}

fn outcome(result: &Result<Response, FetchError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Success,
        Err(FetchError::NotFound { .. }) => Outcome::NotFound,
        Err(FetchError::Denied { .. }) => Outcome::Denied,
        Err(FetchError::RateLimited { .. }) => Outcome::RateLimited,
        Err(FetchError::Unavailable { .. } | FetchError::Busy { .. }) => Outcome::Unavailable,
        Err(FetchError::Shortage { .. }) => Outcome::Shortage,
        Err(FetchError::BadAnswer { .. } | FetchError::TooLarge { .. }) => Outcome::BadAnswer,
    }
}
