//! The daemon's end of the control socket.
//!
//! A client may hang, at any point and on purpose, and must cost nobody anything but a descriptor for a moment: each
//! connection carries one request, has a deadline as a whole, and when there are too many the oldest one goes, so that
//! a newcomer never waits for those that hang.

use super::{
    Change, DOCUMENT, DryRunRequest, HoldRequest, LawRequest, Operator, Problem, Query, ReclaimRequest, Refused,
    RefusedWhy, ReserveRequest, operator, unknown_vm,
};
use crate::daemon::Event;
use crate::socket::{self, BindError, Bound, Waits};
use axum::body::Body;
use axum::extract::{Extension, Path as UrlPath, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Json, Router};
use ballast_planner::VmName;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, sleep, timeout};

/// Connections at a time. Commands take milliseconds, so more are either many hundreds of operators or one that hangs.
const CONNECTIONS: usize = 64;
/// From accepting a connection to the last byte of the answer, whatever the client does.
const WHOLE: Duration = Duration::from_secs(10);
/// For the request's head: who connects and asks nothing is gone sooner.
const HEAD: Duration = Duration::from_secs(5);
/// For the daemon's task, which answers in microseconds; at most half of [`WHOLE`], so that its silence can be told.
const ANSWER: Duration = Duration::from_secs(5);
/// The longest request's body. The longest that makes sense is a hold with its reason.
const LONGEST_BODY: usize = 16 << 10;

type Events = mpsc::Sender<Event>;

/// A control socket that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another daemon serves it.
    #[error("{0} is served by another ballast-host: stop that one first, or give this one its own control-socket")]
    Taken(PathBuf),
    /// Something else is in the way.
    #[error("control socket {0}: what is there is no socket; move it away, or name another control-socket")]
    InTheWay(PathBuf),
    /// Binding.
    #[error("control socket {path} (while trying to {doing})")]
    Bind {
        /// Where.
        path: PathBuf,
        /// The step that failed.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its group.
    #[error(
        "control-group `{0}` is no group of this machine: make it (`groupadd --system {0}`), name another, or leave the key out"
    )]
    Group(String),
}

/// Serves the socket from a task of its own, for as long as the runtime lives. Who is in `group` may use it; without
/// one, the daemon's own group.
///
/// # Errors
/// Another daemon serves it, or it cannot be made.
pub async fn serve(path: &Path, group: Option<&str>, events: Events) -> Result<(), ServeError> {
    let failed = |doing| move |source| ServeError::Bind { path: path.to_owned(), doing, source };
    let group = group.map(|g| group_id(g).ok_or_else(|| ServeError::Group(g.to_owned()))).transpose()?;
    let Bound { listener, file, .. } = socket::bind(path, Waits::Yes).await.map_err(|e| match e {
        BindError::Occupied => ServeError::Taken(path.to_owned()),
        BindError::InTheWay => ServeError::InTheWay(path.to_owned()),
        BindError::Io { doing, source } => failed(doing)(source),
    })?;
    if group.is_some() {
        file.give_to(None, group).map_err(failed("give it to its group"))?;
    }
    file.set_mode(0o660).map_err(failed("set its mode"))?;
    tokio::spawn(accept(listener, router(events)));
    Ok(())
}

/// Removes the socket.
pub fn remove(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(%error, "removing the control socket");
    }
}

/// The number of a group, by `/etc/group` (group(5)) or as a number.
fn group_id(group: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let named = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    named.or_else(|| group.parse().ok())
}

async fn accept(listener: UnixListener, router: Router) {
    let mut open: VecDeque<tokio::task::JoinHandle<()>> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No descriptor is free, most likely: to ask again at once would only burn a processor.
                tracing::warn!(%error, "the control socket takes nobody for a moment");
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            tracing::debug!("more than {CONNECTIONS} control clients: the oldest is hung up on");
            oldest.abort();
        }
        open.push_back(tokio::spawn(connection(stream, router.clone())));
    }
}

async fn connection(stream: UnixStream, router: Router) {
    let Ok(peer) = stream.peer_cred() else { return };
    let inner = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        hyper::service::Service::call(&inner, request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(LONGEST_BODY)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(WHOLE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a control client"),
        Err(_) => tracing::debug!(uid = peer.uid(), "a control client that hangs is hung up on"),
    }
}

/// Method, path, handler: the whole API.
pub(super) fn routes() -> Vec<(Method, &'static str, MethodRouter<Events>)> {
    vec![
        (Method::GET, "/v1/status", get(status)),
        (Method::GET, "/v1/vms/{name}", get(explain)),
        (Method::PUT, "/v1/vms/{name}/hold", put(hold)),
        (Method::DELETE, "/v1/vms/{name}/hold", delete(release)),
        (Method::PUT, "/v1/vms/{name}/exempt", put(exempt)),
        (Method::DELETE, "/v1/vms/{name}/exempt", delete(unexempt)),
        (Method::POST, "/v1/reclaim", post(reclaim)),
        (Method::PUT, "/v1/reservations/{name}", put(reserve)),
        (Method::DELETE, "/v1/reservations/{name}", delete(unreserve)),
        (Method::PUT, "/v1/law", put(law)),
        (Method::PUT, "/v1/dry-run", put(dry_run)),
        (Method::POST, "/v1/reload", post(reload)),
        (Method::GET, "/v1/openapi.json", get(openapi)),
    ]
}

fn router(events: Events) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, (_, path, handler)| router.route(path, handler));
    router
        .fallback(|uri: Uri| async move {
            let path = uri.path();
            problem(
                StatusCode::NOT_FOUND,
                format!("there is nothing at {path}; GET /v1/openapi.json lists what there is"),
            )
        })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            let path = uri.path();
            let text = format!("{method} is not for {path}; GET /v1/openapi.json lists what there is");
            problem(StatusCode::METHOD_NOT_ALLOWED, text)
        })
        .layer(from_fn(log_change))
        .with_state(events)
}

/// Every request that may change something leaves a line: who, what, and how it ended.
async fn log_change(mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<UCred>().copied();
    let (Some(peer), false) = (peer, request.method() == Method::GET || request.method() == Method::HEAD) else {
        return next.run(request).await;
    };
    let named = request.headers().get(operator::ON_BEHALF).and_then(|v| v.to_str().ok());
    let who = Operator::of(&peer).on_behalf_of(named);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(who.clone());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let (uid, gid, pid) = (who.uid, who.gid, who.pid.unwrap_or(-1));
    tracing::info!(user = %who, uid, gid, pid, %method, path, status, "control");
    response
}

fn problem(status: StatusCode, error: String) -> Response {
    (status, Json(Problem { error })).into_response()
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.why {
            RefusedWhy::Unknown => StatusCode::NOT_FOUND,
            RefusedWhy::Conflict => StatusCode::CONFLICT,
            RefusedWhy::Invalid => StatusCode::BAD_REQUEST,
        };
        problem(status, self.problem)
    }
}

/// Asks the daemon's task.
async fn ask<T>(events: &Events, query: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<T, Response> {
    tell(events, |reply| Event::Query(query(reply))).await
}

async fn tell<T>(events: &Events, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Response> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        events.send(event(reply)).await.ok()?;
        answer.await.ok()
    };
    let text = match timeout(ANSWER, exchange).await {
        Ok(Some(answer)) => return Ok(answer),
        Ok(None) => "the daemon is stopping".to_owned(),
        Err(_) => {
            format!("the daemon did not answer within {ANSWER:?}; what was asked may still be done, see `status`")
        }
    };
    Err(problem(StatusCode::SERVICE_UNAVAILABLE, text))
}

/// The body of a request.
async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Response> {
    let bytes = axum::body::to_bytes(body, LONGEST_BODY).await.map_err(|_| {
        problem(StatusCode::PAYLOAD_TOO_LARGE, format!("the request's body is longer than {LONGEST_BODY} bytes"))
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let text = format!("the request's body is not what is wanted here: {error}; GET /v1/openapi.json describes it");
        problem(StatusCode::BAD_REQUEST, text)
    })
}

fn json<T: Serialize>(answer: Result<T, Refused>) -> Response {
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err(refused) => refused.into_response(),
    }
}

async fn change(events: &Events, who: Operator, change: Change) -> Result<Response, Response> {
    ask(events, |reply| Query::Change(who, change, reply)).await.map(json)
}

type Answer = Result<Response, Response>;

async fn status(State(events): State<Events>) -> Answer {
    ask(&events, Query::Status).await.map(|status| Json(status).into_response())
}

async fn explain(State(events): State<Events>, UrlPath(name): UrlPath<VmName>) -> Answer {
    if let Some(explained) = ask(&events, |reply| Query::Explain(name.clone(), reply)).await? {
        return Ok(Json(explained).into_response());
    }
    let status = ask(&events, Query::Status).await?;
    if status.waiting.iter().any(|w| w.name == name) {
        let text = format!("`{name}` is named in the configuration, but no hypervisor has it now: start it first");
        return Err(problem(StatusCode::NOT_FOUND, text));
    }
    let known = status.vms.iter().map(|vm| &vm.name).chain(status.waiting.iter().map(|w| &w.name));
    Err(problem(StatusCode::NOT_FOUND, unknown_vm(&name, known)))
}

async fn hold(
    State(events): State<Events>,
    Extension(who): Extension<Operator>,
    UrlPath(vm): UrlPath<VmName>,
    body: Body,
) -> Answer {
    let request: HoldRequest = read(body).await?;
    change(&events, who, Change::Hold(vm, request)).await
}

async fn release(
    State(events): State<Events>,
    Extension(who): Extension<Operator>,
    UrlPath(vm): UrlPath<VmName>,
    uri: Uri,
) -> Answer {
    let force = match uri.query() {
        None | Some("force=false") => false,
        Some("force=true") => true,
        Some(other) => {
            return Err(problem(StatusCode::BAD_REQUEST, format!("`?{other}` is not known here; ?force=true is")));
        }
    };
    change(&events, who, Change::Release { vm, force }).await
}

async fn exempt(
    State(events): State<Events>,
    Extension(who): Extension<Operator>,
    UrlPath(vm): UrlPath<VmName>,
) -> Answer {
    change(&events, who, Change::Exempt { vm, on: true }).await
}

async fn unexempt(
    State(events): State<Events>,
    Extension(who): Extension<Operator>,
    UrlPath(vm): UrlPath<VmName>,
) -> Answer {
    change(&events, who, Change::Exempt { vm, on: false }).await
}

async fn reclaim(State(events): State<Events>, Extension(who): Extension<Operator>, body: Body) -> Answer {
    let request: ReclaimRequest = read(body).await?;
    ask(&events, |reply| Query::Reclaim(who, request, reply)).await.map(json)
}

async fn reserve(
    State(events): State<Events>,
    Extension(who): Extension<Operator>,
    UrlPath(name): UrlPath<VmName>,
    body: Body,
) -> Answer {
    let request: ReserveRequest = read(body).await?;
    change(&events, who, Change::Reserve(name, request)).await
}

async fn unreserve(
    State(events): State<Events>,
    Extension(who): Extension<Operator>,
    UrlPath(name): UrlPath<VmName>,
) -> Answer {
    change(&events, who, Change::Unreserve(name)).await
}

async fn law(State(events): State<Events>, Extension(who): Extension<Operator>, body: Body) -> Answer {
    let request: LawRequest = read(body).await?;
    change(&events, who, Change::Law(request)).await
}

async fn dry_run(State(events): State<Events>, Extension(who): Extension<Operator>, body: Body) -> Answer {
    let request: DryRunRequest = read(body).await?;
    change(&events, who, Change::DryRun(request)).await
}

async fn reload(State(events): State<Events>) -> Answer {
    tell(&events, Event::Reload).await.map(|reloaded| Json(reloaded).into_response())
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_socket_stays_and_who_listens_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, events) = (folder.path().join("control"), mpsc::channel(1).0);
        std::fs::write(&path, "an operator's notes").unwrap();
        let error = serve(&path, None, events.clone()).await.unwrap_err();
        assert!(matches!(error, ServeError::InTheWay(_)), "{error}");
        remove(&path);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "an operator's notes");
        std::fs::remove_file(&path).unwrap();

        // A daemon that takes nobody any more lives all the same.
        let living = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&living, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(Duration::from_secs(5), UnixStream::connect(&path)).await.unwrap() {
            waiting.push(stream);
        }
        let error = serve(&path, None, events.clone()).await.unwrap_err();
        assert!(matches!(error, ServeError::Taken(_)), "{error}");
        drop((living, waiting));
        serve(&path, None, events).await.unwrap();
        remove(&path);
        assert!(!path.exists());
    }
}
