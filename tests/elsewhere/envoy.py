"""deploy/envoy/envoy.yaml with the ports of a test."""

import pathlib

import yaml

FILE = pathlib.Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"


def configuration(port, admin_port, replicas, retries):
    """The waits are shorter than in the file, because the tests are."""
    made = yaml.safe_load(FILE.read_text())
    made["admin"]["address"] = address(admin_port)
    (listener,), (cluster,) = made["static_resources"]["listeners"], made["static_resources"]["clusters"]
    listener["address"] = address(port)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    if not retries:
        del manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"]
    endpoints = [{"endpoint": {"address": address(replica.port)}} for replica in replicas]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    cluster["type"] = "STATIC"
    cluster["health_checks"][0] |= {"interval": "0.3s", "no_traffic_interval": "0.3s"}
    policy = cluster["load_balancing_policy"]["policies"][0]["typed_extension_config"]["typed_config"]
    policy |= {"blackout_period": "0.5s", "weight_update_period": "0.2s"}
    return yaml.safe_dump(made)


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
