"""Whether a certificate chain is valid for a name, as a browser on this machine would decide.

The authorities and the time are passed in: verification reads no file. Nothing here is about REALITY.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import warnings
from collections.abc import Iterable
from typing import Final, NamedTuple

import service_identity
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto
from service_identity.cryptography import verify_certificate_hostname

from qre.causes import Cause, of_verdict
from qre.errors import MachineError

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
#: No public site sends more.
MAX_CHAIN: Final = 16


class ChainProblem(NamedTuple):
    """Why a chain is not valid, and the same for people."""

    cause: Cause
    detail: str


class TrustStore:
    """A set of authorities. ``source`` describes their origin for messages."""

    def __init__(self, authorities: Iterable[x509.Certificate], source: str) -> None:
        self.source = source
        self._authorities = [crypto.X509.from_cryptography(authority) for authority in authorities]

    def __len__(self) -> int:
        return len(self._authorities)

    @classmethod
    def from_pem(cls, pem: bytes, source: str) -> TrustStore:
        """Certificates that do not parse are skipped: one malformed authority must not disable the others."""
        authorities = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # old authorities break newer rules
            for block in _PEM.findall(pem):
                with contextlib.suppress(ValueError):
                    authorities.append(x509.load_pem_x509_certificate(block))
        if not authorities:
            raise MachineError("certificate authorities", f"there is none in {source}", "see SSL_CERT_FILE")
        return cls(authorities, source)

    def problem_untrusted(
        self, chain: list[x509.Certificate], server_name: str, unix_time: int
    ) -> ChainProblem | None:
        """Why this chain, leaf first, is not valid for ``server_name`` at ``unix_time``; None when it is."""
        leaf = chain[0]
        try:
            verify_certificate_hostname(leaf, server_name)
            purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            purposes = None
        except (service_identity.VerificationError, service_identity.CertificateError):
            return ChainProblem(Cause.WRONG_NAME, f"the certificate is not for {server_name}")
        except (ValueError, x509.DuplicateExtension, UnsupportedAlgorithm):
            return ChainProblem(Cause.NOT_TRUSTED, "the certificate has a malformed extension")
        if purposes is not None and not {
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
        }.intersection(purposes):
            return ChainProblem(Cause.NOT_TRUSTED, "the certificate is not for servers")
        return self._chain_problem(chain, unix_time)

    def _chain_problem(self, chain: list[x509.Certificate], unix_time: int) -> ChainProblem | None:
        store = crypto.X509Store()  # a new one each time: OpenSSL ignores all but the first time that is set
        for authority in self._authorities:
            store.add_cert(authority)
        store.set_time(datetime.datetime.fromtimestamp(unix_time, datetime.UTC))
        try:
            context = crypto.X509StoreContext(
                store,
                crypto.X509.from_cryptography(chain[0]),
                [crypto.X509.from_cryptography(certificate) for certificate in chain[1:MAX_CHAIN]],
            )
            context.verify_certificate()
        except crypto.X509StoreContextError as error:
            return _verdict(error, unix_time)
        except (crypto.Error, ValueError):
            return ChainProblem(Cause.NOT_TRUSTED, "the certificate chain cannot be read")
        return None


def _verdict(error: crypto.X509StoreContextError, unix_time: int) -> ChainProblem:
    cause = of_verdict(error.errors[0])
    certificate = error.certificate.to_cryptography()
    match cause:
        case Cause.CLOCK_BEHIND:
            says = f"is not yet valid: it begins at {_time(certificate.not_valid_before_utc)}"
        case Cause.CLOCK_AHEAD:
            says = f"has expired at {_time(certificate.not_valid_after_utc)}"
        case _:
            return ChainProblem(cause, f"the certificate is not trusted: {error}")
    clock = datetime.datetime.fromtimestamp(unix_time, datetime.UTC)
    return ChainProblem(cause, f"the certificate {says}, and this clock says {_time(clock)}")


def _time(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
