"""The audit trail names the key of the request that made a change."""

from service import keys
from service.app import create_app
from tests.conftest import running
from tests.store.test_replicas import body

USER = "/v2/models/tiny/users/ana"


async def test_a_change_is_recorded_under_its_key(settings, tmp_path, rng):
    file = tmp_path / "keys.toml"
    secrets = {name: keys.add(file, name, ["control"]) for name in ("clinic", "operator")}
    app = create_app(settings.model_copy(update={"keys": file}))
    async with running(app) as client:

        def bearer(name):
            return {"authorization": f"Bearer {secrets[name]}"}

        for _ in range(2):
            answer = await client.post(f"{USER}/calibrations", json=body(rng), headers=bearer("clinic"))
            assert answer.status_code == 201
        assert (await client.post(f"{USER}/rollback", headers=bearer("operator"))).status_code == 200
        assert (await client.delete(USER, headers=bearer("clinic"))).status_code == 200
        assert (await client.delete(USER)).status_code == 401
        trail = await app.state.services.store.audit_trail("ana")
    assert [(e.by, e.event, e.verdict) for e in trail] == [
        ("clinic", "calibrated", "promoted"), ("clinic", "calibrated", "promoted"),
        ("operator", "rolled back", None), ("clinic", "erased", None),
    ]  # fmt: skip
