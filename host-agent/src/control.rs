//! The control socket: HTTP and JSON over a Unix socket, and the client behind `status` and `explain`.
//!
//! `GET /v1/status` gives a [`Status`], `GET /v1/vms/NAME` an [`Explained`]. Who may connect is a matter of the
//! socket's mode (0660) and group.

use crate::daemon::Event;
use crate::prober::ProbeStatus;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use ballast_planner::{HostMemory, LawName, VmName, VmStatus};
use ballast_protocol::Micros;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// The daemon as it stands.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it has been up.
    pub up: Micros,
    /// Its configuration.
    pub config: PathBuf,
    /// The law that rules.
    pub law: LawName,
    /// The host's memory, if that law looks at it.
    pub host: Option<HostMemory>,
    /// Its journal, if it keeps one.
    pub journal: Option<PathBuf>,
    /// Its hypervisors.
    pub hypervisors: Vec<HypervisorStatus>,
    /// Its VMs.
    pub vms: Vec<VmStatus>,
    /// VMs that the configuration names and no hypervisor has.
    pub waiting: Vec<Waiting>,
    /// How it goes with the probes of its VMs.
    #[serde(default)]
    pub probes: Vec<ProbeStatus>,
}

/// A hypervisor.
#[derive(Debug, Serialize, Deserialize)]
pub struct HypervisorStatus {
    /// Kind and address.
    pub name: String,
    /// What went wrong the last time it was asked; `None`: it answered.
    pub error: Option<String>,
}

/// A VM that no hypervisor has.
#[derive(Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// Its name.
    pub name: VmName,
    /// Whether its agent is connected all the same.
    pub agent: bool,
}

/// A VM and its last decisions.
#[derive(Debug, Serialize, Deserialize)]
pub struct Explained {
    /// As it stands.
    pub status: VmStatus,
    /// The law that rules.
    pub law: LawName,
    /// The daemon's clock.
    pub now: Micros,
    /// How it goes with its probes; `None`: there was none.
    #[serde(default)]
    pub probe: Option<ProbeStatus>,
    /// The last decisions, oldest first.
    pub decisions: Vec<Decision>,
}

/// One decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decision {
    /// When, daemon's clock.
    pub at: Micros,
    /// For people.
    pub text: String,
}

/// What can be asked of the daemon's task.
#[derive(Debug)]
pub enum Query {
    /// Everything.
    Status(oneshot::Sender<Status>),
    /// One VM.
    Explain(VmName, oneshot::Sender<Option<Explained>>),
}

/// A control socket that cannot be served or used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon serves it.
    #[error("{0} is served by another ballast-host: stop that one first, or give this one its own control-socket")]
    Taken(PathBuf),
    /// Binding.
    #[error("control socket {path}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
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
    /// Talking.
    #[error("the daemon at {path} answered badly: {problem}")]
    Talk {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// There is no such VM.
    #[error("{0}")]
    NoSuchVm(String),
}

/// Serves the socket from a task of its own, until the daemon's task is gone.
///
/// # Errors
/// Another daemon serves it, or it cannot be made.
pub async fn serve(path: &Path, events: mpsc::Sender<Event>) -> Result<(), ControlError> {
    let bind = |source| ControlError::Bind { path: path.to_owned(), source };
    if UnixStream::connect(path).await.is_ok() {
        return Err(ControlError::Taken(path.to_owned()));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(bind)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(bind(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(bind)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(bind)?;
    let router =
        Router::new().route("/v1/status", get(status)).route("/v1/vms/{name}", get(explain)).with_state(events);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the control socket is not served any more");
        }
    });
    Ok(())
}

/// Removes the socket.
pub fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(%error, "removing the control socket");
    }
}

async fn status(State(events): State<mpsc::Sender<Event>>) -> Response {
    let (reply, answer) = oneshot::channel();
    if events.send(Event::Query(Query::Status(reply))).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match answer.await {
        Ok(status) => Json(status).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn explain(State(events): State<mpsc::Sender<Event>>, UrlPath(name): UrlPath<String>) -> Response {
    let (reply, answer) = oneshot::channel();
    if events.send(Event::Query(Query::Explain(VmName(name.clone()), reply))).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match answer.await {
        Ok(Some(explained)) => Json(explained).into_response(),
        Ok(None) => {
            let problem = format!("no VM named `{name}` is known; `ballast-host status` lists them");
            (StatusCode::NOT_FOUND, problem).into_response()
        }
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Asks a running daemon: `GET url`, decoded.
///
/// # Errors
/// No daemon answers, or not well.
pub async fn ask<T: serde::de::DeserializeOwned>(path: &Path, url: &str) -> Result<T, ControlError> {
    let talk = |problem: String| ControlError::Talk { path: path.to_owned(), problem };
    let stream =
        UnixStream::connect(path).await.map_err(|source| ControlError::Connect { path: path.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| talk(e.to_string()))?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::get(url)
        .header(hyper::header::HOST, "ballast")
        .body(Empty::<hyper::body::Bytes>::new())
        .map_err(|e| talk(e.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| talk(e.to_string()))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| talk(e.to_string()))?.to_bytes();
        Ok::<_, ControlError>((status, body))
    };
    let answered = tokio::time::timeout(std::time::Duration::from_secs(5), exchange)
        .await
        .map_err(|_| talk("nothing within 5 s".to_owned()))?;
    connection.abort();
    let (status, body) = answered?;
    match status {
        StatusCode::OK => serde_json::from_slice(&body).map_err(|e| talk(e.to_string())),
        StatusCode::NOT_FOUND => Err(ControlError::NoSuchVm(String::from_utf8_lossy(&body).into_owned())),
        other => Err(talk(other.to_string())),
    }
}
