"""Settings: a flag, or else an environment variable HEADWAY_*, or else a file, or else the default."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.engine.machine import this_machine

ZOO = Path(__file__).resolve().parent.parent / "models" / "zoo"


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it."""


class Settings(BaseSettings):
    """Everything `headway serve` can be told. Frozen; documented in docs/configuration.md from these descriptions."""

    model_config = SettingsConfigDict(env_prefix="HEADWAY_", frozen=True, extra="forbid")

    models: Path = Field(ZOO, description="folder of bundles, <name>/<version>; by default the shipped ones")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port of the API; 0 takes a free one")
    metrics_port: int = Field(
        9090, ge=0, le=65535, description="port of /metrics; the API's own port serves it there; 0 takes a free one"
    )
    store: str = Field(
        "sqlite+aiosqlite:///headway.db",
        description="URL of the store of users' heads: sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE",
    )
    device: str = Field(
        "cpu",
        pattern="^(cpu|cuda|tensorrt)$",
        description="cpu, cuda or tensorrt (with cuda behind it); a model that does not run on it is not ready",
    )
    threads: int = Field(
        0, ge=0, description="ONNX Runtime threads inside one forward; 0: half the usable cores, 1 to 4 (1 on a GPU)"
    )
    frontends: int = Field(
        0,
        ge=0,
        le=64,
        description="processes that answer predictions; 1: the service's own; 0: one a core, at most 8 (on a GPU 1)",
    )
    max_batch: int = Field(64, ge=1, description="most rows in one forward")
    max_delay_us: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="µs that a free runtime waits for more rows; 0: it takes what is there",
    )
    dispatch: str = Field(
        "auto",
        pattern="^(auto|inline|thread)$",
        description="inline on the event loop, thread for one a model, auto: inline if a row takes under 1 ms of CPU",
    )
    queue_rows: int = Field(
        4096,
        ge=1,
        description="rows that may wait, a model, in all processes; past it requests are refused with 429",
    )
    queue_seconds: float = Field(
        2.0,
        gt=0,
        le=3600,
        description="s that rows may wait, by the measured rate; past it 429 (ten times that for bulk rows)",
    )
    max_body_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="largest request body; past it 413")
    resident_heads: int = Field(100_000, ge=1, description="personal heads kept in memory, a model")
    head_bank_bytes: int = Field(
        1 << 30,
        ge=1 << 16,
        description="bytes of personal heads kept in memory, a model; the smaller limit counts",
    )
    keys: Path | None = Field(
        None, description="TOML file of keys (`headway key add`); without it every request is answered"
    )
    drain_seconds: int = Field(20, ge=0, description="time that requests in flight have to finish on SIGTERM")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error")

    def resolved(self) -> Settings:
        """Return the same with the number of front ends chosen, where it is left to the machine.

        Raises:
            ConfigError: this system cannot do what is asked for.
        """
        most = this_machine().frontends if self.device == "cpu" else 1
        if self.frontends > 1 and not hasattr(os, "memfd_create"):
            raise ConfigError(f"frontends {self.frontends}: more than one process needs Linux; use --frontends 1")
        return self.model_copy(update={"frontends": self.frontends or most})


def load(flags: dict[str, Any], file: Path | None = None) -> Settings:
    """Merge flags (None = not given), environment and a TOML file.

    Raises:
        ConfigError: an unknown or invalid setting.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except OSError as e:
            raise ConfigError(f"the settings file {file} cannot be read: {e.strerror}") from e
        except tomllib.TOMLDecodeError as e:
            raise ConfigError(f"the settings file {file} is not TOML: {e}") from e
    given = {k: v for k, v in flags.items() if v is not None}
    try:
        from_environment = Settings().model_dump(exclude_unset=True)
        return Settings(**{**values, **from_environment, **given})
    except ValidationError as e:
        first = e.errors()[0]
        raise ConfigError(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']!r})") from e
