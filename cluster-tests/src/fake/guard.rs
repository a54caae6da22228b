//! Who is let in: Basic, or Bearer with a token service at `/token`.
//!
//! Tokens say in clear text what they are good for and are numbered through the whole process, so
//! that one fake can issue what another accepts.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::answer::Reply;
use super::request::Request;

/// Number of the next token of any fake.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What every token begins with: tests look for it where no secret belongs.
const PREFIX: &str = "token-of-a-fake";

/// What a fake demands of its clients.
#[derive(Clone, Debug, Default)]
pub enum Guard {
    /// Nothing.
    #[default]
    Open,
    /// User and password.
    Basic(String, String),
    /// A token.
    Bearer(Bearer),
}

/// How a fake challenges for tokens, and how it issues them.
#[derive(Clone, Debug)]
pub struct Bearer {
    realm: String,
    scope: Option<String>,
    login: Option<(String, String)>,
    expires_in: u64,
    grants: bool,
}

impl Bearer {
    /// Tokens from the service at `url` (a fake's, without path), for anybody, good for five
    /// minutes. The challenge states no scope.
    pub fn at(url: &str) -> Self {
        Self {
            realm: format!("{url}/token"),
            scope: None,
            login: None,
            expires_in: 300,
            grants: true,
        }
    }

    /// States `scope` in the challenge, right or not.
    #[must_use]
    pub fn scope(mut self, scope: &str) -> Self {
        self.scope = Some(scope.to_owned());
        self
    }

    /// Issues tokens to this user only.
    #[must_use]
    pub fn login(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// States this lifetime.
    #[must_use]
    pub fn expires_in(mut self, seconds: u64) -> Self {
        self.expires_in = seconds;
        self
    }

    /// Issues tokens that are good for nothing.
    #[must_use]
    pub fn fewer_rights(mut self) -> Self {
        self.grants = false;
        self
    }

    fn challenge(&self) -> String {
        let scope = self.scope.as_ref();
        let scope = scope.map(|scope| format!(",scope=\"{scope}\""));
        format!(
            "Bearer realm=\"{}\",service=\"fake\"{}",
            self.realm,
            scope.unwrap_or_default()
        )
    }
}

/// The guard of one fake.
#[derive(Debug, Default)]
pub(super) struct Guards {
    guard: Guard,
    /// Tokens below this number have expired.
    valid_from: u64,
}

impl Guards {
    pub(super) fn set(&mut self, guard: Guard) {
        self.guard = guard;
        self.expire_tokens();
    }

    pub(super) fn expire_tokens(&mut self) {
        self.valid_from = NEXT.load(Ordering::Relaxed);
    }

    /// Returns the refusal of a request that lacks what is demanded.
    pub(super) fn refuse(&self, request: &Request) -> Option<Reply> {
        let authorization = request.header("authorization").unwrap_or_default();
        let (admitted, challenge) = match &self.guard {
            Guard::Open => return None,
            _ if request.path() == "/token" => return None,
            Guard::Basic(user, password) => {
                let challenge = "Basic realm=\"fake\"".to_owned();
                (authorization == basic(user, password), challenge)
            }
            Guard::Bearer(bearer) => (self.admits(authorization, request), bearer.challenge()),
        };
        let refusal = || Reply::error(401, "UNAUTHORIZED").with("WWW-Authenticate", &challenge);
        (!admitted).then(refusal)
    }

    fn admits(&self, authorization: &str, request: &Request) -> bool {
        let token = authorization.strip_prefix(&format!("Bearer {PREFIX}."));
        let Some((number, right)) = token.and_then(|token| token.split_once('.')) else {
            return false;
        };
        let valid = number
            .parse::<u64>()
            .is_ok_and(|number| number >= self.valid_from);
        let path = request.path().trim_start_matches("/v2/");
        let wanted = |right: &str| path.starts_with(&format!("{right}/"));
        valid && right.strip_suffix(".pull").is_some_and(wanted)
    }

    /// Answers as the token service.
    pub(super) fn token(&self, request: &Request) -> Reply {
        let open = Bearer::at("");
        let bearer = match &self.guard {
            Guard::Bearer(bearer) => bearer,
            Guard::Open | Guard::Basic(..) => &open,
        };
        let authorization = request.header("authorization").unwrap_or_default();
        let login = bearer.login.as_ref();
        if login.is_some_and(|(user, password)| authorization != basic(user, password)) {
            return Reply::error(401, "UNAUTHORIZED");
        }
        let scope = request.parameter("scope").unwrap_or_default();
        let scope = scope.replace("%3A", ":").replace("%2F", "/");
        // Real services refuse an empty scope, and more than the right to pull.
        let Some(right) = scope
            .strip_prefix("repository:")
            .filter(|right| right.ends_with(":pull"))
        else {
            return Reply::error(403, "DENIED");
        };
        let right = if bearer.grants { right } else { "nothing" };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let token = format!("{PREFIX}.{number}.{}", right.replace(':', "."));
        let body = json!({"token": token, "expires_in": bearer.expires_in});
        Reply::new(200, "application/json", body.to_string())
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}
