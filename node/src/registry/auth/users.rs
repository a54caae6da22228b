//! The htpasswd file: reading it, and changing one user in its text.
//!
//! The format is that of `htpasswd -B`: a line `name:hash` for each user, the hash by bcrypt.
//! Messages name lines and never what is in them.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bcrypt::HashParts;
use millrace_protocol::access::is_user_name;

/// Largest file that is read, in bytes: 80 a user.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Costs that are accepted. Each step doubles the time of a login: at 17 it is ten seconds, and
/// more is a way to stop the node.
const COSTS: std::ops::RangeInclusive<u32> = 4..=17;

/// Cost that an unknown user is given while the file names nobody.
const USUAL_COST: u32 = 5;

/// Hash versions that `htpasswd` and its kind write.
const BCRYPT: [&str; 3] = ["$2y$", "$2a$", "$2b$"];

/// Why an htpasswd file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is far larger than such files are.
    #[error("{} is larger than {limit_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit_bytes: u64,
    },
    /// A line cannot be used.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
}

/// What is wrong with a line; never what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// No colon.
    #[error("expected a name, a colon and a hash")]
    NoColon,
    /// A name that no user can have.
    #[error(
        "no user can have this name: it is empty, has control characters, or is a word of access rules (anyone, local, \
         authenticated)"
    )]
    Name,
    /// Another kind of hash.
    #[error("the password is not hashed by bcrypt; write it with htpasswd -B or millrace user add")]
    NotBcrypt,
    /// A bcrypt hash that is damaged.
    #[error("the bcrypt hash is damaged")]
    Damaged,
    /// A cost that is out of bounds.
    #[error("the cost of the bcrypt hash is not between 4 and 17")]
    Cost,
}

/// Reads the text of a file; blocks.
///
/// # Errors
/// `Read` and `TooLarge`.
pub fn read(path: &Path) -> Result<String, UsersError> {
    let error = |source| UsersError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(error)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(error)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(UsersError::TooLarge {
            path: path.to_owned(),
            limit_bytes: MAX_FILE_BYTES,
        });
    }
    Ok(text)
}

/// The users that a text names.
pub struct Users {
    text: String,
    by_name: HashMap<Arc<str>, String>,
    max_cost: u32,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Users")
            .field("users", &self.len())
            .finish_non_exhaustive()
    }
}

impl Users {
    /// Takes a text apart; of two lines for one user the last counts.
    ///
    /// # Errors
    /// `Line`, for the first line that cannot be used. `path` is for the message.
    pub fn parse(path: &Path, text: String) -> Result<Self, UsersError> {
        let mut by_name = HashMap::new();
        let mut max_cost = 0;
        for (index, line) in text.lines().enumerate() {
            let read = entry(line).and_then(|entry| {
                let Some((name, hash)) = entry else {
                    return Ok(());
                };
                max_cost = max_cost.max(cost(hash)?);
                by_name.insert(Arc::from(name), hash.to_owned());
                Ok(())
            });
            read.map_err(|problem| UsersError::Line {
                path: path.to_owned(),
                line: index + 1,
                problem,
            })?;
        }
        if by_name.is_empty() {
            max_cost = USUAL_COST;
        }
        Ok(Self {
            text,
            by_name,
            max_cost,
        })
    }

    /// Returns a user's name and hash.
    pub(super) fn find(&self, name: &str) -> Option<(&Arc<str>, &str)> {
        let found = self.by_name.get_key_value(name);
        found.map(|(name, hash)| (name, hash.as_str()))
    }

    /// Returns the highest cost, which is what every failed login takes.
    pub(super) fn max_cost(&self) -> u32 {
        self.max_cost
    }

    /// Returns what was parsed.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Returns how many users there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether nobody is named.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Returns the names in alphabetical order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.by_name.keys().map(AsRef::as_ref).collect();
        names.sort_unstable();
        names
    }

    /// Returns the text with `name` having this hash.
    pub fn with(&self, name: &str, hash: &str) -> String {
        let mut text = self.without(name);
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("{name}:{hash}\n"));
        text
    }

    /// Returns the text without `name`; comments and the other lines stay as they are.
    pub fn without(&self, name: &str) -> String {
        let is_other = |line: &&str| {
            let found = entry(line.trim_end_matches(['\r', '\n']));
            !matches!(found, Ok(Some((found, _))) if found == name)
        };
        self.text.split_inclusive('\n').filter(is_other).collect()
    }
}

/// Reads a line; `None` when it is empty or a comment.
fn entry(line: &str) -> Result<Option<(&str, &str)>, LineProblem> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, hash) = line.split_once(':').ok_or(LineProblem::NoColon)?;
    if !is_user_name(name) {
        return Err(LineProblem::Name);
    }
    Ok(Some((name, hash)))
}

/// Returns the cost of a bcrypt hash.
pub(super) fn cost(hash: &str) -> Result<u32, LineProblem> {
    if !BCRYPT.iter().any(|prefix| hash.starts_with(prefix)) {
        return Err(LineProblem::NotBcrypt);
    }
    let parts: HashParts = hash.parse().map_err(|_| LineProblem::Damaged)?;
    let cost = parts.get_cost();
    if COSTS.contains(&cost) {
        Ok(cost)
    } else {
        Err(LineProblem::Cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `htpasswd -nbB` wrote for the password `secret`.
    const HASH: &str = "$2y$05$dnYknWJlbgeEBkw.3FW2S.438RtxgcUyrYmd15yCBrgW4ShY0R7f2";

    fn users(text: &str) -> Result<Users, String> {
        Users::parse(Path::new("f"), text.to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn users_are_read_with_comments_and_the_last_line_counts() {
        let other = HASH.replace("$2y$05", "$2b$07");
        let text = format!("# people\r\n\nann:{HASH}\r\nbob:{HASH}\nann:{other}\n");
        let users = users(&text).expect("valid");
        assert_eq!(users.names(), ["ann", "bob"]);
        assert_eq!(
            users.find("ann").map(|(_, hash)| hash),
            Some(other.as_str())
        );
        assert_eq!(users.max_cost(), 7);
        assert!(users.find("Ann").is_none());
    }

    #[test]
    fn a_line_that_cannot_be_used_is_named_and_not_repeated() {
        for (line, problem) in [
            ("hunter2", LineProblem::NoColon),
            (":hunter2", LineProblem::Name),
            ("local:hunter2", LineProblem::Name),
            ("ann:hunter2", LineProblem::NotBcrypt),
            ("ann:$apr1$hunter2$x", LineProblem::NotBcrypt),
            ("ann:{SHA}hunter2", LineProblem::NotBcrypt),
            (&format!("ann:{}", &HASH[..40]), LineProblem::Damaged),
            (
                &format!("ann:{}", HASH.replace("$05", "$31")),
                LineProblem::Cost,
            ),
            (
                &format!("ann:{}", HASH.replace("$2y", "$2x")),
                LineProblem::NotBcrypt,
            ),
        ] {
            let message = users(&format!("\n{line}\n")).expect_err(line);
            assert_eq!(message, format!("f:2: {problem}"));
            assert!(!message.contains("hunter2"));
        }
    }

    #[test]
    fn changing_one_user_leaves_the_rest_as_it_is() {
        let text = format!("# people\nann:{HASH}\nbob:{HASH}");
        let before = users(&text).expect("valid");
        assert_eq!(before.without("ann"), format!("# people\nbob:{HASH}"));
        assert_eq!(before.without("eve"), text);
        let other = HASH.replace("$05", "$06");
        assert_eq!(
            before.with("ann", &other),
            format!("# people\nbob:{HASH}\nann:{other}\n")
        );
        let none = users("").expect("valid");
        assert_eq!(none.with("ann", HASH), format!("ann:{HASH}\n"));
    }
}
