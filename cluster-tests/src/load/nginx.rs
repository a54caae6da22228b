//! nginx, the rival: static files with sendfile, and a cache in front of a registry.
//!
//! Configured as one would for speed (no access log, long-lived connections), with what Debian
//! ships and nothing exotic.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::component;
use crate::condition::{patience, within};
use crate::http::Request;
use crate::port::free_address;
use crate::process::Process;

/// Starts with another port, when somebody took it between choosing and binding.
const START_ATTEMPTS: usize = 5;

/// A running nginx; its folder and its processes end with it.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    address: SocketAddr,
    _folder: TempDir,
}

impl Nginx {
    /// Serves the files below `root`.
    ///
    /// # Errors
    /// When nginx is missing or does not start.
    pub async fn of_files(root: &Path) -> Result<Self> {
        let location = format!("root {};", root.display());
        Self::start("", &location).await
    }

    /// Serves the files below `root` over TLS with this chain and key.
    ///
    /// # Errors
    /// When nginx is missing or does not start.
    pub async fn of_files_over_tls(root: &Path, chain: &Path, key: &Path) -> Result<Self> {
        let location = format!("root {};", root.display());
        // Full handshakes are measured, so nobody may resume one.
        let http = format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3;
             ssl_session_tickets off; ssl_session_cache off;",
            chain.display(),
            key.display()
        );
        Self::start_listening("@address@ ssl", &http, &location).await
    }

    /// Caches what `upstream` answers, for ten minutes; one request at a time fills an entry.
    ///
    /// # Errors
    /// When nginx is missing or does not start.
    pub async fn cache_of(upstream: SocketAddr) -> Result<Self> {
        let http = format!(
            "proxy_cache_path @folder@/cache keys_zone=cache:10m max_size=10g;
             upstream registry {{ server {upstream}; keepalive 32; }}"
        );
        let location = "proxy_pass http://registry;
             proxy_http_version 1.1;
             proxy_set_header Connection \"\";
             proxy_cache cache;
             proxy_cache_lock on;
             proxy_cache_valid 200 10m;";
        Self::start(&http, location).await
    }

    async fn start(http: &str, location: &str) -> Result<Self> {
        Self::start_listening("@address@", http, location).await
    }

    async fn start_listening(listen: &str, http: &str, location: &str) -> Result<Self> {
        for _ in 1..START_ATTEMPTS {
            match Self::start_once(listen, http, location).await {
                Err(error) if error.to_string().contains("Address already in use") => {}
                started => return started,
            }
        }
        Self::start_once(listen, http, location).await
    }

    async fn start_once(listen: &str, http: &str, location: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("millrace-nginx-")
            .tempdir()?;
        let address = free_address()?;
        let path = folder.path().display().to_string();
        let configuration = TEMPLATE
            .replace("@listen@", listen)
            .replace("@http@", http)
            .replace("@location@", location)
            .replace("@address@", &address.to_string())
            .replace("@folder@", &path);
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, configuration).context("writing the configuration of nginx")?;
        let mut command = Command::new(component::find("nginx")?);
        command.arg("-c").arg(&file).arg("-p").arg(folder.path());
        let mut nginx = Self {
            process: Process::start("nginx", &command, folder.path())?,
            address,
            _folder: folder,
        };
        nginx.answers().await?;
        Ok(nginx)
    }

    async fn answers(&mut self) -> Result<()> {
        let ready = within(patience(), async || {
            if !matches!(self.process.ended(), Ok(None)) {
                return Some(false);
            }
            let answer = Request::get("/").send(self.address).await;
            answer.is_ok().then_some(true)
        });
        match ready.await {
            Some(true) => Ok(()),
            _ => bail!("nginx does not answer:\n{}", self.process.log()),
        }
    }

    /// Returns the address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the id of the master process, whose children are the workers.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }
}

/// `user root` so that workers may read the folder when tests run as root; nginx ignores the line
/// otherwise.
const TEMPLATE: &str = "
daemon off;
user root;
worker_processes 2;
worker_rlimit_nofile 8192;
pid @folder@/nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    default_type application/octet-stream;
    client_body_temp_path @folder@/body;
    proxy_temp_path @folder@/proxy;
    fastcgi_temp_path @folder@/fastcgi;
    uwsgi_temp_path @folder@/uwsgi;
    scgi_temp_path @folder@/scgi;
    @http@
    server {
        listen @listen@;
        location / { @location@ }
    }
}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Upstream;

    #[tokio::test]
    async fn the_cache_asks_the_upstream_once() {
        let upstream = Upstream::start().await.expect("a registry");
        let cache = Nginx::cache_of(upstream.address())
            .await
            .expect("nginx starts");
        for _ in 0..3 {
            let answer = Request::get("/v2/").send(cache.address()).await;
            assert_eq!(answer.expect("an answer").status(), 200);
        }
        let accesses = upstream.accesses().await.expect("a log");
        let asked = accesses.iter().filter(|access| {
            access.path == "/v2/" && access.method == "GET" && access.status == 200
        });
        // Once by the start of the registry itself, once by the cache.
        assert_eq!(asked.count(), 2);
    }
}
