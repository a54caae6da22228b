//! The cluster as one node shows it at `/status`.

use std::fmt;

use anyhow::{Context, Result};
use millrace_protocol::node_id::NodeId;
use serde_json::Value;

/// What a node says of itself and of the others.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its own name.
    pub me: NodeId,
    /// Everybody that it counts among the members, itself too, in order of names.
    pub members: Vec<SeenMember>,
    /// Fingerprint of its placement.
    pub placement: String,
}

/// One member.
#[derive(Clone, Debug)]
pub struct SeenMember {
    /// Its name.
    pub id: NodeId,
    /// Its zone.
    pub zone: String,
    /// `alive` or `suspect`.
    pub standing: String,
    /// What else is said of it.
    pub all: Value,
}

impl Seen {
    /// Reads the document at `/status`.
    pub(super) fn parse(status: &Value) -> Result<Self> {
        let cluster = &status["cluster"];
        let members = cluster["members"].as_array();
        let members = members.with_context(|| format!("no members in {cluster}"))?;
        let mut members: Vec<SeenMember> = members.iter().map(member).collect::<Result<_>>()?;
        members.sort_by_key(|member| member.id);
        let placement = cluster["placement"].as_str();
        Ok(Self {
            me: id(&cluster["id"])?,
            members,
            placement: placement.context("no placement")?.to_owned(),
        })
    }

    /// Returns the names of those that may be asked, itself too, in order.
    pub fn alive(&self) -> Vec<NodeId> {
        let alive = self
            .members
            .iter()
            .filter(|member| member.standing == "alive");
        alive.map(|member| member.id).collect()
    }

    /// Returns what is seen of a member.
    pub fn member(&self, id: NodeId) -> Option<&SeenMember> {
        self.members.iter().find(|member| member.id == id)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} sees", self.me)?;
        for member in &self.members {
            write!(formatter, " {:?} {},", member.id, member.standing)?;
        }
        Ok(())
    }
}

fn member(value: &Value) -> Result<SeenMember> {
    let text = |key: &str| {
        let text = value[key].as_str();
        text.map(str::to_owned)
            .with_context(|| format!("no {key} in {value}"))
    };
    Ok(SeenMember {
        id: id(&value["id"])?,
        zone: text("zone")?,
        standing: text("standing")?,
        all: value.clone(),
    })
}

fn id(value: &Value) -> Result<NodeId> {
    let text = value.as_str().context("a name is a text")?;
    text.parse()
        .with_context(|| format!("not a name: {text:?}"))
}
