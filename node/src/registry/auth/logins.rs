//! Verifying passwords: one bcrypt for many requests, and never more of them than the node can bear.
//!
//! A verified pair is remembered for a while under a keyed hash of itself and of the stored hash,
//! so that a change of the file makes it unknown at once and the memory tells nobody a password.
//! Equal attempts at the same time are one. A failed login takes the time of the costliest entry,
//! whether the user exists or not.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use super::basic::Basic;
use super::users;

/// How long a right password is remembered: a pull of a thousand layers costs one bcrypt.
const REMEMBERED: Duration = Duration::from_secs(5 * 60);

/// How long a wrong one is: clients repeat it for every object, five times (CLIENT-CONTRACT, 5).
const WRONG_REMEMBERED: Duration = Duration::from_secs(60);

/// Most pairs that are remembered of each kind; 200 bytes each.
const MAX_REMEMBERED: u64 = 20_000;

/// Verifications that one address may have running or next in line: a flood from one waits behind
/// itself, and everybody else's turn comes soon.
const CROWD_SHARE: usize = 2;

/// Most addresses that are told apart; beyond, one that was quiet for longest begins anew.
const MAX_CROWDS: u64 = 10_000;

/// Longest wait for a turn. A client waits 25 s for headers; then it had better go elsewhere.
const PATIENCE: Duration = Duration::from_secs(10);

/// Salt of hashes that nobody compares.
const NO_SALT: [u8; 16] = [0; 16];

type Fingerprint = [u8; 32];

/// Too many passwords wait to be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy;

/// The memory of passwords, and the turns to verify new ones.
pub(super) struct Logins {
    key: hmac::Key,
    right: Cache<Fingerprint, ()>,
    /// Attempts that run, and those that turned out wrong.
    attempts: Cache<Fingerprint, Arc<OnceCell<bool>>>,
    crowds: Cache<Option<IpAddr>, Arc<Semaphore>>,
    /// Half of the processor, so that content flows while passwords are guessed.
    turns: Arc<Semaphore>,
}

impl Logins {
    pub(super) fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cache = || Cache::builder().max_capacity(MAX_REMEMBERED);
        Self {
            key: key.expect("the system has random bytes once a process runs"),
            right: cache().time_to_live(REMEMBERED).build(),
            attempts: Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_live(WRONG_REMEMBERED)
                .build(),
            crowds: Cache::builder()
                .max_capacity(MAX_CROWDS)
                .time_to_idle(REMEMBERED)
                .build(),
            turns: Arc::new(Semaphore::new((cores / 2).max(1))),
        }
    }

    /// Whether the password is that of the `stored` hash; without one it is not.
    ///
    /// # Cancel safety
    /// Dropping the future leaves a running verification to its end.
    pub(super) async fn check(
        &self,
        basic: &Basic,
        stored: Option<&str>,
        max_cost: u32,
        from: Option<IpAddr>,
    ) -> Result<bool, Busy> {
        let fingerprint = self.fingerprint(basic, stored.unwrap_or_default());
        if self.right.get(&fingerprint).is_some() {
            return Ok(true);
        }
        let attempt = self.attempts.get_with(fingerprint, Arc::default);
        let verified = attempt.get_or_try_init(|| async {
            let turn = self.turn(from).await?;
            let password = basic.password().to_owned();
            let stored = stored.map(str::to_owned);
            let work = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                verify(&password, stored.as_deref(), max_cost)
            });
            let is_right = work.await.map_err(|_| Busy)?;
            if is_right {
                self.right.insert(fingerprint, ());
            }
            Ok(is_right)
        });
        verified.await.copied()
    }

    /// Waits for a turn: first among those from the same address, then among all.
    ///
    /// Who waits has a connection, and those are bounded.
    async fn turn(&self, from: Option<IpAddr>) -> Result<[OwnedSemaphorePermit; 2], Busy> {
        let crowd = self
            .crowds
            .get_with(from.map(network), || Arc::new(Semaphore::new(CROWD_SHARE)));
        let turn = async {
            let own = crowd.acquire_owned().await.map_err(|_| Busy)?;
            let turns = Arc::clone(&self.turns).acquire_owned();
            Ok([own, turns.await.map_err(|_| Busy)?])
        };
        tokio::time::timeout(PATIENCE, turn)
            .await
            .unwrap_or(Err(Busy))
    }

    fn fingerprint(&self, basic: &Basic, stored: &str) -> Fingerprint {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [basic.user(), basic.password(), stored] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let tag = context.sign();
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

/// The address, or for IPv6 the network that one customer has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(prefix.into())
        }
    }
}

/// Compares a password; a failure takes as long as the costliest entry.
fn verify(password: &str, stored: Option<&str>, max_cost: u32) -> bool {
    let Some(stored) = stored else {
        burn(password, max_cost);
        return false;
    };
    if bcrypt::verify(password, stored).unwrap_or(false) {
        return true;
    }
    // The rest of the time: 2^n + 2^n + 2^(n+1) + … + 2^(m-1) is 2^m.
    let cost = users::cost(stored).unwrap_or(max_cost);
    (cost..max_cost).for_each(|cost| burn(password, cost));
    false
}

/// Takes the time that a password of this cost takes.
fn burn(password: &str, cost: u32) {
    let hashed = bcrypt::hash_with_salt(password, cost, NO_SALT);
    std::hint::black_box(hashed.is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
    use std::time::Instant;

    fn basic(user: &str, password: &str) -> Basic {
        let text = format!(
            "Basic {}",
            BASE64_STANDARD.encode(format!("{user}:{password}"))
        );
        let value = HeaderValue::try_from(text).expect("a header value");
        Basic::of(&HeaderMap::from_iter([(AUTHORIZATION, value)])).expect("a pair")
    }

    fn hash(password: &str, cost: u32) -> String {
        bcrypt::hash(password, cost).expect("hashed")
    }

    #[tokio::test]
    async fn a_right_password_is_verified_once_and_a_changed_hash_is_verified_anew() {
        let logins = Logins::new();
        let stored = hash("secret", 4);
        let pair = basic("ann", "secret");
        for _ in 0..3 {
            assert_eq!(logins.check(&pair, Some(&stored), 4, None).await, Ok(true));
        }
        assert!(
            logins
                .right
                .get(&logins.fingerprint(&pair, &stored))
                .is_some()
        );
        let changed = hash("another", 4);
        assert_eq!(
            logins.check(&pair, Some(&changed), 4, None).await,
            Ok(false)
        );
        assert_eq!(logins.check(&pair, None, 4, None).await, Ok(false));
    }

    #[tokio::test]
    async fn equal_attempts_are_one() {
        let logins = Logins::new();
        let (pair, stored) = (basic("ann", "secret"), hash("secret", 10));
        let began = Instant::now();
        assert_eq!(logins.check(&pair, Some(&stored), 10, None).await, Ok(true));
        let one = began.elapsed();
        let (pair, stored) = (basic("bob", "secret"), hash("secret", 10));
        let began = Instant::now();
        let all = (0..50).map(|_| logins.check(&pair, Some(&stored), 10, None));
        let all = futures_util::future::join_all(all).await;
        assert!(all.iter().all(|checked| *checked == Ok(true)));
        assert!(
            began.elapsed() < one * 25,
            "50 attempts took {:?}, one {one:?}",
            began.elapsed()
        );
    }

    #[test]
    fn a_failure_takes_as_long_whoever_is_named() {
        let (cheap, dear) = (hash("secret", 5), hash("secret", 9));
        let kinds = [None, Some(&*cheap), Some(&*dear)];
        // The least of several is what the machine needs when nothing disturbs it; in turns, so
        // that what disturbs for a while disturbs all.
        let mut least = [f64::MAX; 3];
        for _ in 0..10 {
            for (least, stored) in least.iter_mut().zip(kinds) {
                let began = Instant::now();
                assert!(!verify("wrong", stored, 9));
                *least = least.min(began.elapsed().as_secs_f64());
            }
        }
        let [unknown, known @ ..] = least;
        for time in known {
            let ratio = time / unknown;
            assert!((0.5..2.0).contains(&ratio), "{ratio}");
        }
    }

    #[test]
    fn addresses_of_one_network_are_one_crowd() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
