//! By which names clients mean an upstream, and that none means two.
//!
//! What is written counts first: keys and aliases of the configuration, then the built-in ones that
//! nobody claims. Hosts and ports name their upstream where that leaves no doubt. How one name must
//! look is `check`'s to say; whom a request means is looked up in the map that is made here.

use std::collections::{BTreeMap, HashMap};

use url::Url;

use super::builtin;
use super::check::{ConfigError, Problem, check_name};
use super::config::{Config, UpstreamConfig};

impl Config {
    /// Returns every name and alias with the canonical name it means.
    ///
    /// Besides what is written these are, where no other upstream claims them: the host and port
    /// of `url`, and `host_port` for each name with a port.
    ///
    /// # Errors
    /// [`Problem::DuplicateName`] when two upstreams claim one name.
    pub fn names(&self) -> Result<HashMap<String, String>, ConfigError> {
        let mut names: HashMap<String, String> = self
            .upstreams
            .keys()
            .map(|name| (name.clone(), name.clone()))
            .collect();
        for (name, entry) in &self.upstreams {
            let hosts = builtin::host_names(name)
                .iter()
                .map(|&host| host.to_owned());
            for (index, alias) in entry.aliases.iter().cloned().chain(hosts).enumerate() {
                let owner = names.entry(alias.clone()).or_insert_with(|| name.clone());
                if owner != name {
                    return Err(ConfigError {
                        key: format!("upstreams.{name}.aliases[{index}]"),
                        problem: Problem::DuplicateName {
                            name: alias,
                            owner: owner.clone(),
                        },
                    });
                }
            }
        }
        let implied = self.implied_names(&names);
        names.extend(implied);
        Ok(names)
    }

    /// Names that follow from hosts and ports; one that several upstreams imply belongs to none.
    fn implied_names(&self, taken: &HashMap<String, String>) -> HashMap<String, String> {
        let mut implied: HashMap<String, Option<String>> = HashMap::new();
        for (name, entry) in &self.upstreams {
            let url = entry.url.as_deref().and_then(|url| Url::parse(url).ok());
            let contact = url.as_ref().map(host_and_port);
            let mut own: Vec<String> = [Some(name.clone()), contact]
                .into_iter()
                .flatten()
                .collect();
            let without_colon: Vec<String> =
                own.iter().map(|host| host.replace(':', "_")).collect();
            own.extend(without_colon);
            own.sort();
            own.dedup();
            for host in own.into_iter().filter(|host| !taken.contains_key(host)) {
                implied
                    .entry(host)
                    .and_modify(|owner| *owner = None)
                    .or_insert_with(|| Some(name.clone()));
            }
        }
        implied
            .into_iter()
            .filter_map(|(host, owner)| Some((host, owner?)))
            .collect()
    }
}

/// Checks the keys and renames those that are another name of Docker Hub.
pub(super) fn canonical_names(
    entries: BTreeMap<String, UpstreamConfig>,
) -> Result<BTreeMap<String, UpstreamConfig>, ConfigError> {
    let mut renamed = BTreeMap::new();
    for (name, entry) in entries {
        check_name(&name)?;
        let hub = builtin::host_names(builtin::DOCKER_HUB).contains(&name.as_str());
        let owner = if hub {
            builtin::DOCKER_HUB.to_owned()
        } else {
            name.clone()
        };
        if renamed.insert(owner.clone(), entry).is_some() {
            let key = format!("upstreams.{name}");
            return Err(ConfigError {
                key,
                problem: Problem::DuplicateName { name, owner },
            });
        }
    }
    Ok(renamed)
}

/// Whether the user gave a built-in alias to another upstream.
pub(super) fn is_claimed(
    alias: &str,
    of: &str,
    entries: &BTreeMap<String, UpstreamConfig>,
) -> bool {
    entries.iter().any(|(name, entry)| {
        let claims = name == alias || entry.aliases.iter().any(|own| own == alias);
        name != of && entry.enabled && claims
    })
}

/// Returns `host`, or `host:port` when the port is not the scheme's own.
pub(super) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::merged;

    #[test]
    fn a_name_with_a_port_is_a_url_and_an_alias() {
        let config = merged("'localhost:5001': {plain_http: true}").expect("valid");
        let entry = &config.upstreams["localhost:5001"];
        assert_eq!(entry.url.as_deref(), Some("http://localhost:5001/"));
        let names = config.names().expect("no duplicates");
        assert_eq!(
            names.get("localhost_5001").map(String::as_str),
            Some("localhost:5001")
        );
    }

    #[test]
    fn a_host_that_two_upstreams_contact_names_neither() {
        let config =
            merged("{a: {url: 'http://r.corp'}, b: {url: 'http://r.corp'}}").expect("valid");
        assert_eq!(config.names().expect("no duplicates").get("r.corp"), None);
    }

    #[test]
    fn the_user_may_take_a_built_in_alias_or_upstream_away() {
        let config = merged("{gitlab: {url: 'https://git.corp'}, nvcr.io: {enabled: false}}")
            .expect("valid");
        let names = config.names().expect("no duplicates");
        assert_eq!(names.get("gitlab").map(String::as_str), Some("gitlab"));
        assert_eq!((names.get("nvcr.io"), names.get("nvcr")), (None, None));
    }
}
