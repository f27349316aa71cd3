//! [`Tls`]: whom an encrypted connection trusts, and who we are to the server.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, ErrorKind};

/// Whom an encrypted connection trusts, and who we are to the server: settings for `rediss://`, by rustls with ring. TLS
/// 1.3 and 1.2. Feature `tls`.
///
/// Without any, the certificates that the system trusts are trusted, and the server must have one for the host that the
/// URL names.
///
/// ```no_run
/// use dogpile::Redis;
/// use dogpile::redis::Tls;
///
/// let tls = Tls::trusting(std::fs::read("ca.pem")?)?
///     .client(std::fs::read("client.pem")?, std::fs::read("client.key")?)?;
/// let redis = Redis::builder("rediss://cache.example:6380").tls(tls).build()?;
/// redis.ping()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Tls {
    roots: Arc<RootCertStore>,
    client: Option<Arc<Client>>,
    server_name: Option<ServerName<'static>>,
}

/// Who we are.
struct Client {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Tls {
    /// Trusts what the system trusts.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when that cannot be read, or is nothing.
    pub fn system() -> Result<Self, Error> {
        let loaded = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Systems have certificates that nobody can read any more.
        let (trusted, _) = roots.add_parsable_certificates(loaded.certs);
        if trusted == 0 {
            let why = loaded.errors.first().map_or_else(|| "there are none".to_string(), ToString::to_string);
            return Err(config(format_args!("the certificates that this system trusts cannot be read: {why}")));
        }
        Ok(Tls { roots: Arc::new(roots), client: None, server_name: None })
    }

    /// Trusts these certificates and no others, such as that of an authority of your own. In PEM.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when one cannot be read, or there is none.
    pub fn trusting(pem: impl AsRef<[u8]>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem.as_ref(), "to be trusted")? {
            roots.add(certificate).map_err(|error| config(format_args!("a certificate to be trusted: {error}")))?;
        }
        Ok(Tls { roots: Arc::new(roots), client: None, server_name: None })
    }

    /// Shows the server a certificate of ours, with those that vouch for it behind it, and proves that it is ours by its
    /// private key. Both in PEM. Default: none.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when one cannot be read, or the key is not that of the certificate.
    pub fn client(mut self, chain: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Result<Self, Error> {
        let chain = certificates(chain.as_ref(), "of the client")?;
        // What is wrong with a key is not told: it might show some of it.
        let key = PrivateKeyDer::from_pem_slice(key.as_ref())
            .map_err(|_| config(format_args!("the client's key is no private key in PEM")))?;
        self.client = Some(Arc::new(Client { chain, key }));
        self.config()?;
        Ok(self)
    }

    /// The name that the server's certificate must be for. Default: the host of the URL.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when it is none.
    pub fn server_name(mut self, name: &str) -> Result<Self, Error> {
        self.server_name = Some(name_of(name)?);
        Ok(self)
    }

    /// What each connection to a host needs.
    pub(crate) fn for_host(&self, host: &str) -> Result<Secure, Error> {
        let name = self.server_name.clone().map_or_else(|| name_of(host), Ok)?;
        Ok(Secure { config: self.config()?, name, is_for_all: self.server_name.is_some() })
    }

    fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        // Named, since a program may have linked another one too, and rustls then does not choose.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| config(format_args!("{error}")))?
            .with_root_certificates(Arc::clone(&self.roots));
        let config_of = match &self.client {
            None => Ok(builder.with_no_client_auth()),
            Some(client) => builder.with_client_auth_cert(client.chain.clone(), client.key.clone_key()),
        };
        config_of.map(Arc::new).map_err(|error| config(format_args!("the client's certificate and key: {error}")))
    }
}

/// Shows no key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("roots", &self.roots.len())
            .field("client", &self.client.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// What a connection needs to be encrypted.
#[derive(Clone)]
pub(crate) struct Secure {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    /// Whether the name is that of all hosts.
    is_for_all: bool,
}

impl Secure {
    /// The same for another host.
    pub(crate) fn for_host(&self, host: &str) -> Result<Self, Error> {
        let name = if self.is_for_all { self.name.clone() } else { name_of(host)? };
        Ok(Secure { config: Arc::clone(&self.config), name, is_for_all: self.is_for_all })
    }
}

fn certificates(pem: &[u8], whose: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    // The parser's words repeat the text, which may hold a key beside the certificates.
    let read = read.map_err(|error| {
        let what = match error {
            pem::Error::MissingSectionEnd { .. } => "one of its sections has no end",
            pem::Error::IllegalSectionStart { .. } => "a line that begins with dashes begins no section",
            pem::Error::Base64Decode(_) => "one of its sections is not in base64",
            _ => "it cannot be read",
        };
        config(format_args!("a certificate {whose} is not in PEM: {what}"))
    })?;
    if read.is_empty() {
        return Err(config(format_args!("there is no certificate {whose} in the PEM")));
    }
    Ok(read)
}

fn name_of(host: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| config(format_args!("no certificate can be for {host:?}, which is neither a name nor an address")))
}

#[cold]
fn config(what: fmt::Arguments<'_>) -> Error {
    Error::new(ErrorKind::Config, format!("setting up TLS: {what}"))
}
