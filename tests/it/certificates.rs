//! Certificates of servers and clients, and servers that have them.

use std::path::PathBuf;

use dogpile::redis::Tls;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::support::{Server, free_port};

/// An authority, and what it signed: a server, and a client.
pub struct Certificates {
    authority: String,
    pub client: [String; 2],
    dir: PathBuf,
}

impl Certificates {
    pub fn new(name: &str) -> Self {
        let params = |names: &[&str], whose: &str| {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, whose);
            params
        };
        let mut authority = params(&[], &format!("the authority of {name}"));
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let signed = |names: &[&str], whose: &str| {
            let key = KeyPair::generate().unwrap();
            let certificate = params(names, whose).signed_by(&key, &authority).unwrap();
            [certificate.pem(), key.serialize_pem()]
        };
        let dir = std::env::temp_dir().join(format!("dogpile-tls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let server = signed(&["127.0.0.1", "cache.example"], "a server");
        for (file, pem) in [("ca.pem", &authority.pem()), ("server.pem", &server[0]), ("server.key", &server[1])] {
            std::fs::write(dir.join(file), pem).unwrap();
        }
        Certificates { authority: authority.pem(), client: signed(&[], "a client"), dir }
    }

    /// A server that is encrypted on a port of its own, with more arguments.
    pub fn serve(&self, arguments: &[&str]) -> (Server, u16) {
        let file = |name: &str| self.dir.join(name).display().to_string();
        for _ in 0..5 {
            let port = free_port();
            let (ca, certificate, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
            let port_text = port.to_string();
            let mut all = vec!["--tls-port", &port_text, "--tls-ca-cert-file", &ca];
            all.extend(["--tls-cert-file", &certificate, "--tls-key-file", &key]);
            all.extend(arguments);
            let server = Server::with(&all);
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return (server, port);
            }
        }
        panic!("no server came up that is encrypted");
    }

    pub fn trust(&self) -> Tls {
        Tls::trusting(&self.authority).unwrap()
    }

    pub fn with_client(&self) -> Tls {
        self.trust().client(&self.client[0], &self.client[1]).unwrap()
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
