//! `ballast-host run` in a folder, its commands, and its socket.

use crate::common::quiet::QuietVm;
use crate::common::schema::Schemas;
use crate::common::{Dependant, wait_for};
use ballast_protocol::Bytes;
use rustix::process::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ballast-host"))
}

/// A folder whose name leaves room in a socket's path.
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("bc").tempdir_in("/tmp").unwrap()
}

/// `ballast-host run` in a folder.
pub struct Host {
    pub process: Option<Dependant>,
    pub folder: PathBuf,
    pub schemas: Schemas,
}

impl Host {
    /// Writes the configuration and starts.
    pub fn start(folder: &Path, daemon: &str, rest: &str) -> Self {
        let document = include_str!("../../openapi.json");
        let mut host = Self { process: None, folder: folder.to_owned(), schemas: Schemas::of(document) };
        host.configure(daemon, rest);
        host.start_again();
        host
    }

    pub fn configure(&self, daemon: &str, rest: &str) {
        let path = self.folder.display();
        let text = format!(
            "[metrics]\nenabled = false\n[daemon]\nstate-dir = \"{path}/state\"\ncontrol-socket = \"{path}/control\"\nvsock = false\n{daemon}\n{rest}"
        );
        std::fs::write(self.folder.join("host.toml"), text).unwrap();
    }

    pub fn start_again(&mut self) {
        let (binary, folder) = (binary().display(), self.folder.display());
        let script = format!("exec {binary} run --config {folder}/host.toml 2>>{folder}/log");
        let mut shell = Command::new("sh");
        self.process = Some(Dependant::spawn(shell.args(["-c", &script]).env("NO_COLOR", "1")));
        wait_for("the daemon", || UnixStream::connect(self.socket()).ok());
    }

    pub fn stop(&mut self, signal: Signal) {
        let mut process = self.process.take().unwrap();
        process.signal(signal);
        process.wait();
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("control")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// A command as an operator behind sudo.
    pub fn command(&self, operator: Option<&str>, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).arg("--config").arg(self.folder.join("host.toml")).env_remove("SUDO_USER");
        command.envs(operator.map(|name| ("SUDO_USER", name)));
        command
    }

    /// What it printed, or what it complained about.
    pub fn run_as(&self, operator: Option<&str>, args: &[&str]) -> Result<String, String> {
        let output = self.command(operator, args).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        if output.status.success() { Ok(out) } else { Err(err) }
    }

    pub fn run(&self, args: &[&str]) -> Result<String, String> {
        self.run_as(None, args)
    }

    /// The only word on a failure.
    pub fn refusal(&self, operator: Option<&str>, args: &[&str]) -> String {
        let said = self.run_as(operator, args).expect_err(&format!("{args:?}"));
        said.strip_prefix("ballast-host: ").unwrap_or_else(|| panic!("{said}")).trim_end().to_owned()
    }

    /// One request; its status and answer, which are as `openapi.json` says.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u64, Value) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        let (status, body) = answer(&mut stream);
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {body}"));
        if path != "/v1/openapi.json" {
            let name = self.described(method, path, status);
            self.schemas.check(&name, &body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {body}"));
        }
        (status, body)
    }

    /// The schema of an answer.
    fn described(&self, method: &str, path: &str, status: u64) -> String {
        let path = path.split('?').next().unwrap();
        let matches = |template: &str| {
            template.split('/').count() == path.split('/').count()
                && template.split('/').zip(path.split('/')).all(|(t, p)| t == p || t == "{name}")
        };
        let paths = self.schemas.document()["paths"].as_object().unwrap();
        let item = paths.iter().find(|(template, _)| matches(template)).map(|(_, item)| item);
        let Some(operation) = item.and_then(|item| item.get(method.to_lowercase())) else {
            return "Problem".to_owned();
        };
        let responses = &operation["responses"];
        let response = responses.get(status.to_string()).unwrap_or(&responses["default"]);
        let target = response["$ref"].as_str().and_then(|r| self.schemas.document().pointer(&r[1..]));
        let schema = &target.unwrap_or(response)["content"]["application/json"]["schema"]["$ref"];
        schema.as_str().unwrap().rsplit('/').next().unwrap().to_owned()
    }

    pub fn status(&self) -> Value {
        let (status, body) = self.ask("GET", "/v1/status", "");
        assert_eq!(status, 200, "{body}");
        body
    }

    pub fn vm(&self, name: &str) -> Option<Value> {
        self.status()["vms"].as_array().unwrap().iter().find(|v| v["name"] == name).cloned()
    }

    /// Waits until these are managed and their statistics known.
    pub fn wait_for_vms(&self, names: &[&str]) {
        for name in names {
            wait_for(name, || self.vm(name).filter(|v| v["available"].is_u64()));
        }
    }
}

/// Status and body of an answer.
pub fn answer(stream: &mut UnixStream) -> (u64, String) {
    let mut text = Vec::new();
    // An answer to a request that was not read to its end is followed by a reset.
    let end = stream.read_to_end(&mut text);
    assert!(end.is_ok() || !text.is_empty(), "{end:?}");
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// 1 GiB with a quarter free: without an agent nothing is taken from it by itself.
pub fn settled(folder: &Path, name: &'static str) -> QuietVm {
    QuietVm::start(folder, name, Bytes::mib(1024), Bytes::mib(760))
}
