//! One HTTP/1.0 exchange per connection. It is short enough to need no client library.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The status and the body of a response.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

/// Calls `base_url`, an `http://` address, with a JSON body or none.
pub async fn call(
    method: &str,
    base_url: &str,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Response> {
    let host = base_url.strip_prefix("http://").context("an http:// URL")?.trim_end_matches('/');
    let mut stream = TcpStream::connect(host).await.with_context(|| format!("reach {host}"))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await?;
    let response = String::from_utf8_lossy(&response);
    let (head, body) = response.split_once("\r\n\r\n").context("no HTTP response")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Response { status: status.context("no HTTP status")?, body: body.to_owned() })
}

/// Calls `GET` and returns the body. It is an error if the status is not 200.
pub async fn get(base_url: &str, path: &str) -> anyhow::Result<String> {
    let response = call("GET", base_url, path, None).await?;
    ensure!(response.status == 200, "GET {base_url}{path}: {} {}", response.status, response.body);
    Ok(response.body)
}
