//! What a 401 asks for.
//!
//! Reads `WWW-Authenticate` and decides which of its challenges to answer and for which scope a
//! token is asked; it asks for none itself. The syntax is the crate `http-auth`'s.
//! Source: CLIENT-CONTRACT U1; RFC 9110 section 11.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use http_auth::ChallengeRef;
use http_auth::parser::ChallengeParser;
use millrace_protocol::oci::RepositoryName;
use url::Url;

/// A challenge that can be answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Challenge {
    /// The user and password themselves.
    Basic,
    /// A token from a token service.
    Bearer(Grant),
}

/// The token that a challenge asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Grant {
    /// Address of the token service.
    pub(super) realm: Url,
    /// Whom the token is for, in the service's words.
    pub(super) service: Option<String>,
    /// What the token allows.
    pub(super) scope: String,
}

impl Challenge {
    /// Picks the challenge to answer for a pull from `repository`: a bearer token if one is
    /// offered, else user and password. `None` when there is none that can be answered.
    pub(super) fn of(headers: &HeaderMap, repository: &RepositoryName) -> Option<Self> {
        let values: Vec<&str> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let challenges: Vec<ChallengeRef<'_>> = values
            .iter()
            .flat_map(|value| ChallengeParser::new(value).map_while(Result::ok))
            .collect();
        let bearer = challenges
            .iter()
            .find_map(|challenge| grant(challenge, repository));
        let basic = || {
            challenges
                .iter()
                .any(|challenge| challenge.scheme.eq_ignore_ascii_case("basic"))
        };
        bearer
            .map(Self::Bearer)
            .or_else(|| basic().then_some(Self::Basic))
    }
}

fn grant(challenge: &ChallengeRef<'_>, repository: &RepositoryName) -> Option<Grant> {
    let parameter = |name: &str| {
        let mut params = challenge.params.iter();
        let (_, value) = params.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value.to_unescaped())
    };
    if !challenge.scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let realm = Url::parse(&parameter("realm")?).ok()?;
    if !matches!(realm.scheme(), "http" | "https") {
        return None;
    }
    let scope = scope(parameter("scope").as_deref(), repository);
    Some(Grant {
        realm,
        service: parameter("service"),
        scope,
    })
}

/// Returns the scope to ask for.
///
/// Registries send a placeholder, another action or nothing where the repository should stand, so
/// that scope is always ours. A registry whose scopes are not about repositories at all, such as
/// `aws` of public.ecr.aws, gets its own back.
fn scope(stated: Option<&str>, repository: &RepositoryName) -> String {
    let foreign = |scope: &&str| !scope.trim().is_empty() && !scope.contains("repository:");
    match stated.filter(foreign) {
        Some(scope) => scope.trim().to_owned(),
        None => format!("repository:{repository}:pull"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(lines: &[&str]) -> Option<Challenge> {
        let headers = lines
            .iter()
            .map(|line| (WWW_AUTHENTICATE, line.parse().expect("valid header")))
            .collect();
        Challenge::of(&headers, &"library/alpine".parse().expect("valid name"))
    }

    fn bearer(realm: &str, service: Option<&str>, scope: &str) -> Option<Challenge> {
        Some(Challenge::Bearer(Grant {
            realm: realm.parse().expect("valid URL"),
            service: service.map(str::to_owned),
            scope: scope.to_owned(),
        }))
    }

    const OURS: &str = "repository:library/alpine:pull";

    #[test]
    fn the_scope_is_ours_whatever_the_registry_writes() {
        for stated in [
            r#",scope="repository:user/image:pull""#,
            r#",scope="repository:library/alpine:pull,push""#,
            r#",scope="repository:library/alpine:pull registry:catalog:*""#,
            r#",scope="""#,
            "",
        ] {
            let line = format!(r#"Bearer realm="https://ghcr.io/token",service="ghcr.io"{stated}"#);
            assert_eq!(
                challenge(&[&line]),
                bearer("https://ghcr.io/token", Some("ghcr.io"), OURS),
                "{stated}"
            );
        }
    }

    #[test]
    fn a_scope_that_is_not_about_repositories_is_kept() {
        let line =
            r#"Bearer realm="https://public.ecr.aws/token/",service="public.ecr.aws",scope="aws""#;
        let expected = bearer(
            "https://public.ecr.aws/token/",
            Some("public.ecr.aws"),
            "aws",
        );
        assert_eq!(challenge(&[line]), expected);
    }

    #[test]
    fn a_bearer_is_preferred_among_several_on_one_or_more_lines() {
        let token = r#"bearer REALM="https://t/a,b?x=\"1\"", service=s"#;
        let expected = bearer(r#"https://t/a,b?x="1""#, Some("s"), OURS);
        assert_eq!(
            challenge(&[&format!(r#"Basic realm="a, b", {token}"#)]),
            expected
        );
        assert_eq!(challenge(&[r#"Basic realm="x""#, token]), expected);
        assert_eq!(
            challenge(&["Negotiate", r#"Basic realm="x""#]),
            Some(Challenge::Basic)
        );
    }

    #[test]
    fn what_cannot_be_answered_is_none() {
        assert_eq!(challenge(&[]), None);
        assert_eq!(challenge(&["Negotiate"]), None);
        assert_eq!(challenge(&[r#"Bearer service="x""#]), None);
        assert_eq!(challenge(&[r#"Bearer realm="file:///etc/passwd""#]), None);
        assert_eq!(challenge(&[r#"Bearer realm="not a url""#]), None);
        assert_eq!(challenge(&[r#"Bearer realm="unterminated"#]), None);
    }
}
