//! The daemon's own small web server: metrics for Prometheus, a page for people.
//!
//! ```text
//!   GET /metrics  one snapshot, as text
//!   GET /         the page: one file, nothing from elsewhere
//!   GET /events   snapshots for the page, one a second, only while somebody listens (server-sent events)
//! ```
//! It only shows. On the loopback address it still has visitors that nobody invited: a browser on this machine runs
//! other people's pages. Such a page can send requests here and is kept from reading the answers by the browser, unless
//! its own host name resolves to this address (DNS rebinding): so only requests are answered that name `localhost`, an
//! address or a name from the configuration as their host. And names of VMs are chosen by others: the page makes text
//! of them and never markup, and its policy forbids any script but its own.
//!
//! Whatever its clients do, it takes a bounded number of connections and no time of the daemon's task beyond a snapshot.

mod live;

use crate::config::Metrics as Settings;
use crate::daemon::Event;
use crate::metrics::{self, Depth, Snapshot};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header, uri::Authority};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use live::Live;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Connections at a time. Each is a file that guests' connections and journals may need: the usual limit is 1,024.
const CONNECTIONS: usize = 64;
/// Whoever connects has something to ask.
const HEADER: Duration = Duration::from_secs(5);
/// After so long a connection ends, whatever it does. A page that is looked at comes back by itself.
const LONGEST: Duration = Duration::from_secs(600);
/// A pause when connections cannot be accepted, for example because there are no files left.
const BREATHER: Duration = Duration::from_millis(100);

const PAGE: &str = include_str!("web/page.html");
/// What the page has in the place of a number that each answer draws anew.
const NONCE: &str = "NONCE";

/// A web server that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its address.
    #[error(
        "metrics and status page cannot listen on {listen}: choose another `listen` in [metrics] of the configuration, or set enabled = false there"
    )]
    Bind {
        /// Which.
        listen: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What all requests share.
#[derive(Clone, Debug)]
struct Shown {
    events: mpsc::Sender<Event>,
    live: Arc<Live>,
    names: Arc<[String]>,
}

/// Serves from tasks of its own until the daemon's task is gone; returns the address.
///
/// # Errors
/// The address cannot be had.
pub async fn serve(settings: &Settings, events: mpsc::Sender<Event>) -> Result<SocketAddr, Error> {
    let bind = |source| Error::Bind { listen: settings.listen, source };
    let listener = TcpListener::bind(settings.listen).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let shown = Shown { live: Live::start(events.clone()), events, names: settings.names.clone().into() };
    let router = Router::new()
        .route("/", get(page))
        .route("/metrics", get(scrape))
        .route("/events", get(live::events))
        .layer(middleware::from_fn_with_state(shown.clone(), guard))
        .with_state(shown);
    tokio::spawn(accept(listener, router));
    Ok(address)
}

async fn accept(listener: TcpListener, router: Router) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone());
                tokio::spawn(async move {
                    // Ended early, or ended by us: nothing that anybody could do something about.
                    let _ = tokio::time::timeout(LONGEST, connection).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: cannot accept connections");
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        tracing::debug!(%error, "metrics: a connection ended early");
    }
}

/// Lets only those requests through that were meant for this server, and marks all answers as nobody else's.
async fn guard(State(shown): State<Shown>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let mut response = if host.is_some_and(|h| is_ours(h, &shown.names)) {
        next.run(request).await
    } else {
        let why =
            "this server answers to localhost, to addresses, and to the `names` in [metrics] of its configuration\n";
        (StatusCode::MISDIRECTED_REQUEST, why).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// Whether a request's `Host` names this server. An address is never somebody else's name.
fn is_ours(host: &str, names: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    name == "localhost" || name.parse::<IpAddr>().is_ok() || names.contains(&name)
}

/// Asks the daemon's task; `None`: it is ending.
async fn look(events: &mpsc::Sender<Event>, depth: Depth) -> Option<Box<Snapshot>> {
    let (reply, answer) = oneshot::channel();
    events.send(Event::Look { depth, reply }).await.ok()?;
    answer.await.ok()
}

async fn scrape(State(shown): State<Shown>) -> Response {
    let Some(snapshot) = look(&shown.events, Depth::Figures).await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    // A thousand VMs are 45,000 lines: not on a thread that sessions wait for.
    match tokio::task::spawn_blocking(move || metrics::render(&snapshot)).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::FORMAT)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        Err(panic) => (StatusCode::INTERNAL_SERVER_ERROR, panic.to_string()).into_response(),
    }
}

async fn page() -> Response {
    // Linux' own source of random text; hex digits and dashes.
    let Ok(nonce) = std::fs::read_to_string("/proc/sys/kernel/random/uuid") else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "/proc/sys/kernel/random/uuid cannot be read\n").into_response();
    };
    let nonce = nonce.trim();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [(header::CONTENT_SECURITY_POLICY, policy), (header::REFERRER_POLICY, "no-referrer".to_owned())];
    (headers, Html(PAGE.replace(NONCE, nonce))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_with_its_key() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = taken.local_addr().unwrap();
        let settings = Settings { listen, names: Vec::new() };
        let text = crate::chain(&serve(&settings, mpsc::channel(1).0).await.unwrap_err());
        assert!(text.contains(&format!("cannot listen on {listen}")), "{text}");
        assert!(text.contains("`listen` in [metrics]") && text.contains("in use"), "{text}");
    }

    #[test]
    fn only_names_that_mean_this_machine_are_ours() {
        let names = ["host1.example".to_owned()];
        for host in ["localhost:9741", "LOCALHOST", "127.0.0.1:9741", "[::1]:9741", "10.0.0.7", "Host1.Example:80"] {
            assert!(is_ours(host, &names), "{host}");
        }
        for host in
            ["evil.example:9741", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b", "host1.example."]
        {
            assert!(!is_ours(host, &names), "{host}");
        }
    }

    #[test]
    fn the_page_is_one_file_and_marked_in_each_place_that_runs() {
        assert_eq!(PAGE.matches("<script").count(), PAGE.matches("<script nonce=\"NONCE\">").count());
        assert_eq!(PAGE.matches("<style").count(), PAGE.matches("<style nonce=\"NONCE\">").count());
        assert_eq!(PAGE.matches(NONCE).count(), 2);
        for forbidden in ["http://", "https://", "innerHTML", "insertAdjacentHTML", "document.write", "eval(", " src="]
        {
            // The name of SVG's name space is an address, and nothing is fetched from it.
            let text = PAGE.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains(forbidden), "{forbidden}");
        }
    }
}
