"""An ingress as KServe uses one: nginx that sends requests on by host name, and over HTTP by path as well."""

from nginx_front import free_port, running

CONFIGURATION = """
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    http2 on;
    server {{
        listen 127.0.0.1:{port} default_server;
        location {path}/ {{ proxy_pass http://{http}/; }}
        location / {{ return 404; }}
    }}
    server {{
        listen 127.0.0.1:{port};
        server_name {host};
        location / {{ proxy_pass http://{http}; }}
        location /inference.GRPCInferenceService/ {{ grpc_pass grpc://{grpc}; }}
    }}
}}
"""


def ingress(folder, server, *, host, path):
    """Run the ingress before a server until the end of the block; the value is its `host:port`."""
    port = free_port()
    values = {"folder": folder, "port": port, "host": host, "path": path}
    text = CONFIGURATION.format(http=server.http_url, grpc=server.grpc_url, **values)
    (folder / "nginx.conf").write_text(text)
    return running(folder, port)
