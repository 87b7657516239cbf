//! The client's end of the control socket.

use super::{Problem, operator};
use axum::http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tokio::time::{Duration, timeout};

/// Longer than the daemon takes to say that it is too busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// A daemon that does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Connecting.
    #[error(
        "no ballast-host answers at {path}: is it running? (`systemctl status ballast-host`, or name its control-socket with --socket)"
    )]
    Connect {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Connecting, without the right to.
    #[error("{path} is not for you: become root, or have yourself added to its group (`control-group` in host.toml)")]
    Forbidden {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Talking.
    #[error("the daemon at {path} answered badly: {problem}")]
    Talk {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The daemon says no, and why.
    #[error("{problem}")]
    Refused {
        /// As in HTTP.
        status: StatusCode,
        /// For people.
        problem: String,
    },
}

/// Asks a running daemon: `GET url`, decoded.
///
/// # Errors
/// No daemon answers, not well, or with a refusal.
pub async fn ask<T: DeserializeOwned>(path: &Path, url: &str) -> Result<T, ControlError> {
    exchange(path, Method::GET, url, Bytes::new()).await
}

/// Has a running daemon do something: `method url` with `body` as JSON, its answer decoded.
///
/// # Errors
/// No daemon answers, not well, or with a refusal.
pub async fn tell<T: DeserializeOwned>(
    path: &Path,
    method: Method,
    url: &str,
    body: Option<&impl Serialize>,
) -> Result<T, ControlError> {
    let talk = |e: serde_json::Error| ControlError::Talk { path: path.to_owned(), problem: e.to_string() };
    let body = body.map(serde_json::to_vec).transpose().map_err(talk)?.unwrap_or_default();
    exchange(path, method, url, body.into()).await
}

async fn exchange<T: DeserializeOwned>(path: &Path, method: Method, url: &str, body: Bytes) -> Result<T, ControlError> {
    let talk = |problem: String| ControlError::Talk { path: path.to_owned(), problem };
    let connect = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::PermissionDenied => ControlError::Forbidden { path: path.to_owned(), source },
        _ => ControlError::Connect { path: path.to_owned(), source },
    };
    let exchange = async {
        let stream = UnixStream::connect(path).await.map_err(connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| talk(e.to_string()))?;
        let mut request = hyper::Request::builder().method(method).uri(url).header(hyper::header::HOST, "ballast");
        if let Some(name) = std::env::var_os("SUDO_USER") {
            request = request.header(operator::ON_BEHALF, name.as_encoded_bytes());
        }
        if !body.is_empty() {
            request = request.header(hyper::header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|e| talk(e.to_string()))?;
        // Dropped, and with it aborted, when this exchange is over.
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(connection);
        let response = sender.send_request(request).await.map_err(|e| talk(e.to_string()))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| talk(e.to_string()))?.to_bytes();
        Ok::<_, ControlError>((status, body))
    };
    let (status, body) =
        timeout(PATIENCE, exchange).await.map_err(|_| talk(format!("nothing within {PATIENCE:?}")))??;
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|e| talk(e.to_string()));
    }
    let problem = serde_json::from_slice(&body)
        .map_or_else(|_| format!("{status} {}", String::from_utf8_lossy(&body)), |p: Problem| p.error);
    Err(ControlError::Refused { status, problem })
}
