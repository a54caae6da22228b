//! An HTTP proxy between node and upstream: tinyproxy with its log.
//!
//! It is asked for plain requests and for tunnels (`CONNECT`). It does not look into tunnels.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::component;
use crate::port::free_address;
use crate::process::Process;

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    command: Command,
    address: SocketAddr,
    folder: TempDir,
}

impl Proxy {
    /// Starts a proxy that anybody on loopback may use.
    ///
    /// # Errors
    /// When tinyproxy is missing or does not listen.
    pub async fn start() -> Result<Self> {
        Self::with("").await
    }

    /// Starts a proxy with further lines of configuration, each with its line feed.
    ///
    /// # Errors
    /// When tinyproxy is missing or does not listen.
    pub async fn with(lines: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-proxy-")
            .tempdir()?;
        let address = free_address()?;
        let file = folder.path().join("tinyproxy.conf");
        // LogLevel Connect names every request; without LogFile it goes to standard output.
        let configuration = format!(
            "Port {}\nListen {}\nAllow 127.0.0.1\nLogLevel Connect\nTimeout 60\nMaxClients 100\n{lines}",
            address.port(),
            address.ip()
        );
        std::fs::write(&file, configuration)?;
        let mut command = Command::new(component::find("tinyproxy")?);
        command.arg("-d").arg("-c").arg(&file);
        let process = Self::launch(&command, address, &folder).await?;
        Ok(Self {
            process,
            command,
            address,
            folder,
        })
    }

    async fn launch(command: &Command, address: SocketAddr, folder: &TempDir) -> Result<Process> {
        let mut process = Process::start("tinyproxy", command, folder.path())?;
        process
            .ready(async || TcpStream::connect(address).await.ok())
            .await?;
        Ok(process)
    }

    /// Ends the proxy; connections to it are refused from now on.
    pub fn stop(&mut self) {
        self.process.kill();
    }

    /// Starts the proxy again, on the same address.
    ///
    /// # Errors
    /// When it does not listen.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop();
        self.process = Self::launch(&self.command, self.address, &self.folder).await?;
        Ok(())
    }

    /// Returns `http://<address>`, as `HTTP_PROXY` wants it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns its URL with user and password, for those who have to show them.
    pub fn url_with_login(&self, user: &str, password: &str) -> String {
        format!("http://{user}:{password}@{}", self.address)
    }

    /// Counts the tunnels to `address` that were asked for.
    pub fn tunnels(&self, address: SocketAddr) -> usize {
        let wanted = format!("CONNECT {address} ");
        let requests = self.requests();
        requests
            .iter()
            .filter(|line| line.contains(&wanted))
            .count()
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
