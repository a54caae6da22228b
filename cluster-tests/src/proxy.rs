//! An HTTP proxy between node and upstream: tinyproxy with its log.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::component;
use crate::process::{Process, free_address};

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Proxy {
    /// Starts a proxy that anybody on loopback may use.
    ///
    /// # Errors
    /// When tinyproxy is missing or does not listen.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-proxy-")
            .tempdir()?;
        let address = free_address()?;
        let file = folder.path().join("tinyproxy.conf");
        // LogLevel Connect names every request; without LogFile it goes to standard output.
        let configuration = format!(
            "Port {}\nListen {}\nAllow 127.0.0.1\nLogLevel Connect\nTimeout 60\nMaxClients 100\n",
            address.port(),
            address.ip()
        );
        std::fs::write(&file, configuration)?;
        let mut command = Command::new(component::find("tinyproxy")?);
        command.arg("-d").arg("-c").arg(&file);
        let mut process = Process::start("tinyproxy", &command, folder.path())?;
        process
            .ready(async || TcpStream::connect(address).await.ok())
            .await?;
        Ok(Self {
            process,
            address,
            _folder: folder,
        })
    }

    /// Returns `http://<address>`, as `HTTP_PROXY` wants it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the requests that came, one line each.
    pub fn requests(&self) -> Vec<String> {
        let log = self.process.log();
        log.lines()
            .filter(|line| line.contains("Request"))
            .map(str::to_owned)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Request;
    use crate::upstream::Upstream;

    #[tokio::test]
    async fn a_request_through_the_proxy_arrives_and_is_logged() {
        let upstream = Upstream::start().await.expect("a registry");
        let proxy = Proxy::start().await.expect("a proxy");
        let target = format!("{}/v2/", upstream.url());
        let answer = Request::get(&target)
            .send(proxy.address)
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        assert!(
            proxy.requests().iter().any(|line| line.contains(&target)),
            "{}",
            proxy.process.log()
        );
    }
}
