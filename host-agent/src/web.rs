//! The daemon's own small web server: metrics for Prometheus, a page for people.
//!
//! ```text
//!   GET /metrics  one snapshot, as text; two a second at most, for all who ask together
//!   GET /         the page: one file, nothing from elsewhere
//!   GET /events   snapshots for the page, one a second, only while somebody listens (server-sent events)
//! ```
//! It only shows. On the loopback address it still has visitors that nobody invited: a browser on this machine runs
//! other people's pages. Such a page can send requests here and is kept from reading the answers by the browser, unless
//! its own host name resolves to this address (DNS rebinding): so only requests are answered that name `localhost`, an
//! address or a name from the configuration as their host, and what costs a look at all VMs is refused to requests that
//! the browser says come from another site. And names of VMs are chosen by others: the page makes text
//! of them and never markup, and its policy forbids any script but its own.
//!
//! Whatever its clients do, it takes a bounded number of connections, of which the oldest that asks for nothing goes when
//! there are too many, and no time of the daemon's task beyond four snapshots a second.

mod live;
mod shared;

use crate::config::Metrics as Settings;
use crate::daemon::Event;
use crate::metrics::{self, Depth, Snapshot};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header, uri::Authority};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use live::Live;
use shared::Shared;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Connections at a time. Each is a file that guests' connections and journals may need: the usual limit is 1,024.
const CONNECTIONS: usize = 64;
/// Whoever connects has something to ask.
const HEADER: Duration = Duration::from_secs(5);
/// After so long a connection ends, whatever it does. A page that is looked at comes back by itself.
const LONGEST: Duration = Duration::from_secs(600);
/// How long a scrape's text is shared: less than the interval of any Prometheus.
const SCRAPE: Duration = Duration::from_millis(500);
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
    scrape: Shared,
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
    let text = |snapshot: &Snapshot| metrics::render(snapshot).map_err(|e| e.to_string());
    let shown = Shown {
        scrape: Shared::start(events.clone(), Depth::Figures, SCRAPE, text),
        live: Live::start(events),
        names: settings.names.clone().into(),
    };
    let router = Router::new()
        .route("/", get(page))
        .route("/metrics", get(scrape))
        .route("/events", get(live::events))
        .layer(middleware::from_fn_with_state(shown.clone(), guard))
        .with_state(shown);
    tokio::spawn(accept(listener, router));
    Ok(address)
}

/// A connection, and whether it has asked for something.
struct Open {
    task: JoinHandle<()>,
    asked: Arc<AtomicBool>,
}

async fn accept(listener: TcpListener, router: Router) {
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "metrics: cannot accept connections");
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= CONNECTIONS {
            let idle = open.iter().position(|connection| !connection.asked.load(Ordering::Relaxed));
            if let Some(oldest) = open.remove(idle.unwrap_or(0)) {
                tracing::debug!("more than {CONNECTIONS} clients of metrics and page: the oldest is hung up on");
                oldest.task.abort();
            }
        }
        let asked = Arc::new(AtomicBool::new(false));
        let connection = connection(stream, router.clone(), Arc::clone(&asked));
        // Ended early, or ended by us: nothing that anybody could do something about.
        let task = tokio::spawn(async move { drop(tokio::time::timeout(LONGEST, connection).await) });
        open.push_back(Open { task, asked });
    }
}

async fn connection(stream: TcpStream, router: Router, asked: Arc<AtomicBool>) {
    let inner = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        asked.store(true, Ordering::Relaxed);
        hyper::service::Service::call(&inner, request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "metrics: a connection ended early");
    }
}

/// Lets only those requests through that were meant for this server, and marks all answers as nobody else's.
async fn guard(State(shown): State<Shown>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let refused = if host.is_none_or(|h| !is_ours(h, &shown.names)) {
        let why =
            "this server answers to localhost, to addresses, and to the `names` in [metrics] of its configuration\n";
        Some((StatusCode::MISDIRECTED_REQUEST, why))
    } else if request.uri().path() != "/" && is_of_another_site(request.headers()) {
        // The page itself may be linked to: it costs nothing, and cannot be framed.
        Some((StatusCode::FORBIDDEN, "this is not for pages of other sites\n"))
    } else {
        None
    };
    let mut response = match refused {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
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

/// Whether a page of another site asks, by the word of the browser that shows it. It could not read the answer, and
/// could make us work for it. Who follows its link is a person.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site")
        && headers.get("sec-fetch-dest").is_none_or(|what| what != "document")
}

/// Asks the daemon's task; `None`: it is ending.
async fn look(events: &mpsc::Sender<Event>, depth: Depth) -> Option<Box<Snapshot>> {
    let (reply, answer) = oneshot::channel();
    events.send(Event::Look { depth, reply }).await.ok()?;
    answer.await.ok()
}

async fn scrape(State(shown): State<Shown>) -> Response {
    match shown.scrape.text().await {
        Some(Ok(text)) => ([(header::CONTENT_TYPE, metrics::FORMAT)], text).into_response(),
        Some(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
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
    use crate::metrics::Metrics;
    use ballast_planner::LawName;
    use ballast_protocol::Micros;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{sleep, timeout};

    pub(super) fn nothing() -> Snapshot {
        Snapshot {
            at: Micros::ZERO,
            started: 0.0,
            law: LawName::Ballast,
            dry_run: false,
            host: None,
            hypervisors: Vec::new(),
            problems: Vec::new(),
            waiting: 0,
            queue: 0,
            vms: Vec::new(),
            latencies: Metrics::default().latencies(),
            marks: Vec::new(),
            past: None,
        }
    }

    /// A server over a daemon's task that counts what it is asked, and is busy for a while each time.
    async fn served() -> (SocketAddr, Arc<Mutex<Vec<Depth>>>) {
        let (events, mut inbox) = mpsc::channel(4);
        let settings = Settings { listen: (std::net::Ipv4Addr::LOCALHOST, 0).into(), names: Vec::new() };
        let address = serve(&settings, events).await.unwrap();
        let looks = Arc::new(Mutex::new(Vec::new()));
        let counted = Arc::clone(&looks);
        tokio::spawn(async move {
            while let Some(Event::Look { depth, reply }) = inbox.recv().await {
                counted.lock().unwrap().push(depth);
                sleep(Duration::from_millis(50)).await;
                let _ = reply.send(Box::new(nothing()));
            }
        });
        (address, looks)
    }

    /// The beginning of what is answered; the connection stays open with it.
    async fn ask(address: SocketAddr, path: &str, more: &str) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").as_bytes()).await.unwrap();
        let mut head = [0; 64];
        let length = stream.read(&mut head).await.unwrap();
        (String::from_utf8_lossy(&head[..length]).into_owned(), stream)
    }

    async fn all(address: SocketAddr, path: &'static str, count: usize) -> Vec<(String, TcpStream)> {
        let asked: Vec<_> = (0..count).map(|_| tokio::spawn(async move { ask(address, path, "").await })).collect();
        let mut answers = Vec::with_capacity(count);
        for asked in asked {
            answers.push(asked.await.unwrap());
        }
        answers
    }

    fn are_ok(answers: &[(String, TcpStream)]) -> usize {
        answers.iter().filter(|(head, _)| head.starts_with("HTTP/1.1 200 ")).count()
    }

    #[tokio::test]
    async fn however_many_scrape_the_daemon_is_asked_twice_a_second() {
        let (address, looks) = served().await;
        assert_eq!(are_ok(&all(address, "/metrics", 64).await), 64);
        let count = looks.lock().unwrap().len();
        assert!((1..=2).contains(&count), "{count}");
        // Who hangs up begins no look either.
        for _ in 0..64 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        }
        sleep(SCRAPE + Duration::from_millis(200)).await;
        assert_eq!(are_ok(&all(address, "/metrics", 1).await), 1);
        let asked = looks.lock().unwrap().clone();
        assert!(asked.len() <= 4 && asked.len() > count && asked.iter().all(|d| *d == Depth::Figures), "{asked:?}");
    }

    #[tokio::test]
    async fn pages_that_open_together_share_all_that_is_remembered_and_are_sixteen_at_most() {
        let (address, looks) = served().await;
        let pages = all(address, "/events", 20).await;
        assert_eq!(are_ok(&pages), 16);
        assert_eq!(looks.lock().unwrap().iter().filter(|d| **d == Depth::All).count(), 1);
        drop(pages);
        // A page that was closed has left its place.
        for attempt in 0.. {
            if are_ok(&all(address, "/events", 1).await) == 1 {
                break;
            }
            assert!(attempt < 50, "no place becomes free");
            sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test]
    async fn who_asks_for_nothing_locks_nobody_out() {
        let (address, _) = served().await;
        let page = ask(address, "/events", "").await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        // Sooner than any of them is given up for its silence.
        let (head, _) = timeout(HEADER / 2, ask(address, "/metrics", "")).await.expect("a scrape");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        // The page is older than all of them, and asked for something.
        let (head, mut page) = page;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut text = String::new();
        while text.matches("data:").count() < 3 {
            let mut part = [0; 512];
            let length = timeout(HEADER, page.read(&mut part)).await.expect("a snapshot a second").unwrap();
            assert!(length > 0, "hung up on after {text}");
            text += &String::from_utf8_lossy(&part[..length]);
        }
    }

    #[tokio::test]
    async fn pages_of_other_sites_get_nothing_and_cost_nothing() {
        let (address, looks) = served().await;
        for path in ["/metrics", "/events"] {
            let (head, _) = ask(address, path, "Sec-Fetch-Site: cross-site\r\n").await;
            assert!(head.starts_with("HTTP/1.1 403 "), "{path}: {head}");
        }
        assert!(looks.lock().unwrap().is_empty());
        for (path, site) in [("/", "cross-site"), ("/metrics", "none"), ("/events", "same-origin")] {
            let (head, _) = ask(address, path, &format!("Sec-Fetch-Site: {site}\r\n")).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{path}, {site}: {head}");
        }
    }

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
