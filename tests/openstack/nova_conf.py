"""The files that the services of `nova_rig` read."""

_SIGN_IN = """\
auth_type = password
auth_url = http://127.0.0.1:{keystone}/v3
username = service
password = secret
project_name = service
user_domain_id = default
project_domain_id = default
"""
_TOKENS = f"""\
[keystone_authtoken]
www_authenticate_uri = http://127.0.0.1:{{keystone}}/
service_token_roles_required = True
{_SIGN_IN}"""

_KEYSTONE = """\
[database]
connection = mysql+pymysql://rig:rig@127.0.0.1:{maria}/keystone?ssl_disabled=true
[token]
provider = fernet
[fernet_tokens]
key_repository = {home}/keystone/fernet
[fernet_receipts]
key_repository = {home}/keystone/fernet
[credential]
key_repository = {home}/keystone/credential
"""

_CINDER = f"""\
[DEFAULT]
auth_strategy = keystone
osapi_volume_listen_port = {{cinder}}
{_TOKENS}"""

_PLACEMENT = f"""\
[placement_database]
connection = mysql+pymysql://rig:rig@127.0.0.1:{{maria}}/placement?ssl_disabled=true
{_TOKENS}"""

# The inspection takes a kernel for an unsafe disk when a live migration fetches it.
_NOVA = f"""\
[DEFAULT]
my_ip = 127.0.0.1
state_path = {{home}}/nova
transport_url = rabbit://guest:guest@127.0.0.1:{{rabbit}}/
compute_driver = libvirt.LibvirtDriver
heal_instance_info_cache_interval = -1
[api_database]
connection = mysql+pymysql://rig:rig@127.0.0.1:{{maria}}/nova_api?ssl_disabled=true
[database]
connection = mysql+pymysql://rig:rig@127.0.0.1:{{maria}}/nova?ssl_disabled=true
[oslo_concurrency]
lock_path = {{home}}/nova/lock
[conductor]
workers = 1
[scheduler]
workers = 1
discover_hosts_in_cells_interval = 2
[workarounds]
disable_deep_image_inspection = True
[vnc]
enabled = False
[neutron]
endpoint_override = http://127.0.0.1:{{network}}
{_SIGN_IN}
[placement]
{_SIGN_IN}
[cinder]
{_SIGN_IN}
[service_user]
send_service_user_token = True
{_SIGN_IN}
{_TOKENS}"""

# What a host has of its own; the emulator is QEMU's, as /dev/kvm may start and then hang.
_NOVA_HOST = """\
[DEFAULT]
host = {name}
state_path = {home}
instances_path = {hosts}/instances
[oslo_concurrency]
lock_path = {home}/lock
[libvirt]
virt_type = qemu
cpu_mode = none
connection_uri = {uri}
live_migration_uri = qemu+unix:///system?socket={hosts}/%s/own/run/libvirt/libvirt-sock
live_migration_tunnelled = True
[nova_sys_admin]
helper_command = {venv}/bin/privsep-helper --config-file {home}/nova.conf
[privsep_osbrick]
helper_command = {venv}/bin/privsep-helper --config-file {home}/nova.conf
"""

_LIBVIRTD = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
host_uuid = "{uuid}"
"""
_QEMU = """\
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""

FILES = {
    "keystone/keystone.conf": _KEYSTONE,
    "cinder/keystone.conf": _CINDER,
    "placement/placement.conf": _PLACEMENT,
    "nova/nova.conf": _NOVA,
}
HOST_FILES = {"nova.conf": _NOVA_HOST, "libvirtd.conf": _LIBVIRTD, "own/etc/qemu.conf": _QEMU}

SECRET = """\
<secret ephemeral="no" private="no">
  <uuid>{uuid}</uuid>
  <usage type="ceph"><name>client.admin secret</name></usage>
</secret>
"""
