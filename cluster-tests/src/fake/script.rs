//! Which request gets which treatment.

use std::time::Duration;

use bytes::Bytes;

use super::gate::Gate;
use super::request::Request;

/// Which requests a rule is about: those that match, from one number of them to another.
#[derive(Clone, Debug)]
pub struct When {
    method: Option<String>,
    part: String,
    header: Option<(String, String)>,
    skip: usize,
    times: usize,
}

impl When {
    /// Requests with any method whose target contains `part`.
    pub fn any(part: &str) -> Self {
        Self {
            method: None,
            part: part.to_owned(),
            header: None,
            skip: 0,
            times: usize::MAX,
        }
    }

    /// `GET` requests whose target contains `part`.
    pub fn get(part: &str) -> Self {
        Self {
            method: Some("GET".to_owned()),
            ..Self::any(part)
        }
    }

    /// `HEAD` requests whose target contains `part`.
    pub fn head(part: &str) -> Self {
        Self {
            method: Some("HEAD".to_owned()),
            ..Self::any(part)
        }
    }

    /// Only those with a header line `name` whose value contains `part`.
    #[must_use]
    pub fn with(mut self, name: &str, part: &str) -> Self {
        self.header = Some((name.to_owned(), part.to_owned()));
        self
    }

    /// Only the first `times` of them.
    #[must_use]
    pub fn first(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Only after `skip` of them have passed.
    #[must_use]
    pub fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    fn matches(&self, request: &Request) -> bool {
        let method = self.method.as_ref();
        let header = self.header.as_ref();
        method.is_none_or(|method| *method == request.method)
            && request.target.contains(&self.part)
            && header.is_none_or(|(name, part)| {
                request
                    .header(name)
                    .is_some_and(|value| value.contains(part.as_str()))
            })
    }
}

/// An answer that does not depend on the content.
#[derive(Clone, Debug)]
pub struct Canned {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

impl Canned {
    /// An answer without body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// A redirect; 307 keeps the method.
    pub fn redirect(location: &str) -> Self {
        Self::status(307).header("Location", location)
    }

    /// Adds a header line.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// How a body is broken off.
#[derive(Clone, Debug)]
pub(super) enum Break {
    Fin,
    Reset,
    /// Nothing more until the gate opens; then the rest.
    Stall(Gate),
}

/// A change of a healthy body.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Inverts the byte at an offset of the whole content.
    Flip(usize),
    /// Other content altogether.
    Replace(Bytes),
    /// Compresses it, and says so.
    Gzip,
}

/// How a request is treated; without anything said, as a healthy registry does.
#[derive(Clone, Debug, Default)]
pub struct Then {
    pub(super) hold: Option<Gate>,
    pub(super) delay: Option<Duration>,
    pub(super) canned: Option<Canned>,
    pub(super) headers: Vec<(String, Option<String>)>,
    pub(super) ignores_range: bool,
    pub(super) change: Option<Change>,
    pub(super) rate: Option<u64>,
    pub(super) head_rate: Option<u64>,
    pub(super) breaks: Option<(u64, Break)>,
}

impl Then {
    /// A healthy answer, to be spoilt by the methods below.
    pub fn healthy() -> Self {
        Self::default()
    }

    /// Another answer.
    pub fn answer(canned: Canned) -> Self {
        Self {
            canned: Some(canned),
            ..Self::default()
        }
    }

    /// An answer without body.
    pub fn status(status: u16) -> Self {
        Self::answer(Canned::status(status))
    }

    /// No answer at all; the connection stays open.
    pub fn hang() -> Self {
        Self::default().hold(&Gate::default())
    }

    /// Waits for `gate` before anything is answered.
    #[must_use]
    pub fn hold(mut self, gate: &Gate) -> Self {
        self.hold = Some(gate.clone());
        self
    }

    /// Waits for `delay` before anything is answered.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Sets a header line of the answer.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), Some(value.to_owned())));
        self
    }

    /// Leaves a header line of the answer out. Without `Content-Length` the end of the connection
    /// is the end of the body.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.push((name.to_owned(), None));
        self
    }

    /// Answers 200 with everything, whatever `Range` asks for.
    #[must_use]
    pub fn ignore_range(mut self) -> Self {
        self.ignores_range = true;
        self
    }

    /// Sends one wrong byte at `offset` of the content.
    #[must_use]
    pub fn flip(mut self, offset: usize) -> Self {
        self.change = Some(Change::Flip(offset));
        self
    }

    /// Sends other content, with its own length.
    #[must_use]
    pub fn replace(mut self, content: impl Into<Bytes>) -> Self {
        self.change = Some(Change::Replace(content.into()));
        self
    }

    /// Compresses the body on the wire.
    #[must_use]
    pub fn gzip(mut self) -> Self {
        self.change = Some(Change::Gzip);
        self
    }

    /// Sends the body at `bytes_per_second`.
    #[must_use]
    pub fn rate(mut self, bytes_per_second: u64) -> Self {
        self.rate = Some(bytes_per_second);
        self
    }

    /// Sends the head at `bytes_per_second`.
    #[must_use]
    pub fn head_rate(mut self, bytes_per_second: u64) -> Self {
        self.head_rate = Some(bytes_per_second);
        self
    }

    /// Ends the connection by FIN after `bytes` of the body.
    #[must_use]
    pub fn cut(mut self, bytes: u64) -> Self {
        self.breaks = Some((bytes, Break::Fin));
        self
    }

    /// Ends the connection by RST after `bytes` of the body.
    #[must_use]
    pub fn reset(mut self, bytes: u64) -> Self {
        self.breaks = Some((bytes, Break::Reset));
        self
    }

    /// Sends nothing more after `bytes` of the body until `gate` opens.
    #[must_use]
    pub fn stall(mut self, bytes: u64, gate: &Gate) -> Self {
        self.breaks = Some((bytes, Break::Stall(gate.clone())));
        self
    }
}

#[derive(Debug)]
struct Rule {
    when: When,
    then: Then,
    seen: usize,
}

/// All rules of a fake.
#[derive(Debug, Default)]
pub(super) struct Script {
    rules: Vec<Rule>,
}

impl Script {
    pub(super) fn add(&mut self, when: When, then: Then) {
        self.rules.push(Rule {
            when,
            then,
            seen: 0,
        });
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Decides how a request is treated, and counts it.
    pub(super) fn treat(&mut self, request: &Request) -> Then {
        for rule in &mut self.rules {
            let Rule { when, seen, .. } = rule;
            if !when.matches(request) || *seen >= when.skip.saturating_add(when.times) {
                continue;
            }
            *seen += 1;
            if *seen > when.skip {
                return rule.then.clone();
            }
        }
        Then::healthy()
    }
}
