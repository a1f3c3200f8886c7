"""Files that are not what their name says (QUALITY P17): refused by every reader, nothing opened, nobody contacted.

A canary file is watched by the kernel (inotify), so that an open by any C library counts too, and a listener
counts connections. Twins show that both notice what GDAL, OGR and friends do with the same files.
"""

import contextlib
import ctypes
import json
import os
import socket
import sqlite3
import struct
import sys
import threading
import time
from pathlib import Path

import geopandas as gpd
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from PIL import Image

from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs import photos, polygons, tables

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is a Linux kernel's")

IN_OPEN, IN_NONBLOCK, IN_CLOEXEC = 0x20, 0o4000, 0o2000000


class Canary:
    """A file whose every opening is counted by the kernel."""

    def __init__(self, path):
        path.write_text("path,longitude,latitude\ncanary,1,2\n" * 40)
        self.path = path
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
        assert libc.inotify_add_watch(self.descriptor, os.fsencode(path), IN_OPEN) >= 0

    def opens(self):
        """Give the openings since the last call."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.descriptor, 65536):
                count += len(data) // struct.calcsize("iIII")
        return count


class Listener:
    """A server on this machine that counts who calls."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.count = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.socket.accept()
                self.count += 1
                caller.close()


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    watched = Canary(tmp_path_factory.mktemp("outside") / "canary.csv")
    yield watched
    os.close(watched.descriptor)


@pytest.fixture(scope="module")
def listener():
    server = Listener()
    yield server
    server.socket.close()


def raster_vrt(source, raw=True):
    band = (
        f'<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand"><SourceFilename>{source}</SourceFilename>'
        "<ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset><LineOffset>8</LineOffset></VRTRasterBand>"
        if raw
        else f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )
    return f'<VRTDataset rasterXSize="8" rasterYSize="8">{band}</VRTDataset>'


def ogr_vrt(source):
    layer = f"<SrcDataSource>{source}</SrcDataSource><SrcLayer>canary</SrcLayer>"
    return f'<OGRVRTDataSource><OGRVRTLayer name="canary">{layer}</OGRVRTLayer></OGRVRTDataSource>'


def square_geojson(crs):
    ring = [[0, 0], [1, 0], [1, 1], [0, 0]]
    features = [
        {"type": "Feature", "properties": {"path": "a.jpg"}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    ]
    return json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})


def geopackage(folder, *statements):
    path = folder / "made.gpkg"
    path.unlink(missing_ok=True)
    square = gpd.GeoDataFrame({"path": ["a.jpg"]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326")
    square.to_file(path, layer="a", engine="pyogrio", SPATIAL_INDEX="NO")
    database = sqlite3.connect(path)
    database.execute("PRAGMA writable_schema=ON")
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()
    return path.read_bytes()


def payloads(canary, port, folder):
    """Make files that point elsewhere, by name."""
    url = f"http://127.0.0.1:{port}"
    link = {"type": "link", "properties": {"href": f"{url}/crs", "type": "proj4"}}
    virtual = "INSERT INTO sqlite_master VALUES ('table', 'evil', 'evil', 0, 'CREATE VIRTUAL TABLE evil USING {}')"
    kml = f"<kml><NetworkLink><Link><href>{url}/k</href></Link></NetworkLink></kml>"
    wms = f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}</ServerUrl></Service></GDAL_WMS>'
    return {
        "raster vrt": raster_vrt(canary.path).encode(),
        "raster vrt, bom": b"\xef\xbb\xbf\n" + raster_vrt(canary.path).encode(),
        "raster vrt, address": raster_vrt(f"/vsicurl/{url}/a.tif", raw=False).encode(),
        "ogr vrt": ogr_vrt(canary.path).encode(),
        "ogr vrt, address": ogr_vrt(f"/vsicurl/{url}/a.csv").encode(),
        "wms": wms.encode(),
        "tile index": f"<GDALTileIndexDataset><IndexDataset>{canary.path}</IndexDataset>".encode(),
        "kml link": kml.encode(),
        "gml": f'<gml:FeatureCollection xmlns:gml="g" xsi:schemaLocation="g {url}/s.xsd"/>'.encode(),
        "xml entity": f'<!DOCTYPE a [<!ENTITY b SYSTEM "file://{canary.path}">]><a>&b;</a>'.encode(),
        "geojson crs link": square_geojson(link).encode(),
        "geojson crs file": square_geojson({"type": "link", "properties": {"href": str(canary.path)}}).encode(),
        "geojson crs name": square_geojson({"type": "name", "properties": {"name": f"{url}/crs"}}).encode(),
        "geojson crs grid": square_geojson(
            {"type": "name", "properties": {"name": f"+proj=longlat +nadgrids={canary.path}"}}
        ).encode(),
        "esri json": b'{"serviceItemId": "x", "url": "' + url.encode() + b'"}',
        "stac": json.dumps({"type": "FeatureCollection", "links": [{"rel": "next", "href": url}]}).encode(),
        "virtual ogr": geopackage(folder, virtual.format(f"VirtualOGR(''{canary.path}'')")),
        "virtual text": geopackage(folder, virtual.format(f"VirtualText(''{canary.path}'', ''utf-8'')")),
        "geocoding view": geopackage(
            folder,
            "CREATE VIEW v AS SELECT 1 AS fid, ogr_geocode('Essen') AS geom, 'a.jpg' AS path",
            "UPDATE gpkg_contents SET table_name = 'v', identifier = 'v'",
            "UPDATE gpkg_geometry_columns SET table_name = 'v'",
        ),
        "not a geopackage": b"SQLite format 3\0" + bytes(4000),
        "pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/x'\ntR.",
        "zip": b"PK\x03\x04" + bytes(60),
        "url text": f"{url}/t.csv\n".encode(),
        "html": f'<img src="{url}/i.png">'.encode(),
        "netcdf url": f"DODS:{url}/x\n".encode(),
        "path text": f"{canary.path}\n".encode(),
        "svg": f'<svg xmlns:xlink="x"><image xlink:href="file://{canary.path}"/></svg>'.encode(),
        "postscript": f"%!PS\n({canary.path}) (r) file".encode(),
    }


NAMES = [
    f"a{suffix}"
    for suffix in (*photos.IMAGE_SUFFIXES, ".csv", ".tsv", ".gpkg", ".parquet", ".geojson", ".json", ".shp")
]


def read_table_and_its_images(path):
    """A table by its kind, and whatever image it names; one image is a table of one row."""
    table = tables.read_image_table(path)
    for image in tables.absolute_paths(table):
        photos.read_photo(image)


READERS = (photos.read_photo, photos.read_metadata, polygons.read_polygons, read_table_and_its_images)


@pytest.mark.hard
def test_disguised_files_are_refused_and_lead_nowhere(canary, listener, tmp_path):
    cases = 0
    made = payloads(canary, listener.port, tmp_path)
    canary.opens()
    before = listener.count
    for kind, data in made.items():
        for name in NAMES:
            path = tmp_path / name
            path.write_bytes(data)
            for reader in READERS:
                with pytest.raises(BadInputError) as caught:
                    reader(path)
                assert name in str(caught.value), (kind, name)
                cases += 1
    assert cases > 1500
    assert canary.opens() == 0
    assert listener.count == before


def test_names_that_are_more_than_names_lead_nowhere(canary, listener, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = f"http://127.0.0.1:{listener.port}"
    names = [
        f"{url}/a.jpg", f"{url}/t.csv", f"{url}/t.geojson", f"/vsicurl/{url}/a.tif", f"/vsicurl_streaming/{url}/t.gpkg",
        f"/vsisubfile/0_10,{canary.path}", f"/vsizip/{canary.path}", "/vsistdin/", f"file://{canary.path}",
        f"zip://{canary.path}!a.jpg", f"zip+{url}/a.zip!t.gpkg", f"GTIFF_DIR:1:{canary.path}", f"WMS:{url}",
        f"PG:host={url}",
        f"HTTP:{url}", f'NETCDF:"{canary.path}":x', f"CSV:{canary.path}", raster_vrt(canary.path), ogr_vrt(canary.path),
        square_geojson({"type": "link", "properties": {"href": url}}), f"|cat {canary.path}", f"$(cat {canary.path})",
        f"{canary.path}\0.jpg", f"a.gpkg?vfs={url}", f"file:{canary.path}?mode=rw",
    ]  # fmt: skip
    canary.opens()
    before = listener.count
    for name in names:
        for reader in READERS:
            with pytest.raises(BadInputError):
                reader(name)
    table = tables.read_image_table(pd.DataFrame({"path": [*names, str(canary.path)]}), root=tmp_path)
    assert set(table["status"]) <= {"refused", "missing"}
    for option in ("crs", "layer"):
        for name in names:
            frame = pd.DataFrame({"path": ["a.jpg"], "x": [1.0], "y": [2.0]})
            with pytest.raises((UsageError, BadInputError)):
                tables.read_image_table(frame, **{option: name}) if option == "crs" else tables.read_image_table(
                    tmp_path, layer=name
                )
    assert canary.opens() == 0
    assert listener.count == before


def test_links_do_not_lead_a_table_out(canary, tmp_path):
    (tmp_path / "a.jpg").symlink_to(canary.path)
    canary.opens()
    table = tables.read_image_table(tmp_path, exif=True)
    assert table["status"].tolist() == ["refused"]
    assert canary.opens() == 0


def test_python_level_events_stay_inside(canary, tmp_path):
    """The interpreter's own audit events: no socket, no open outside the folder while honest files are read."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    square = gpd.GeoDataFrame({"path": ["a.jpg"]}, geometry=[shapely.Point(7, 51)], crs="EPSG:25832")
    square.to_file(tmp_path / "t.gpkg", engine="pyogrio")
    square.to_parquet(tmp_path / "t.parquet")
    square.to_crs("OGC:CRS84").to_file(tmp_path / "t.geojson", engine="pyogrio")
    pd.DataFrame({"path": ["a.jpg"], "lon": [7.0], "lat": [51.0]}).to_csv(tmp_path / "t.csv", index=False)

    def read_all():
        for name in ("t.gpkg", "t.parquet", "t.geojson", "t.csv"):
            assert tables.read_image_table(tmp_path / name)["status"].tolist() == ["ok"]
        photos.read_photo(tmp_path / "a.jpg")

    read_all()  # imports and PROJ's database are done with
    with recorded() as events:
        read_all()
    assert not [event for event in events if event[0].startswith(("socket.", "subprocess.", "os.system", "urllib."))]
    opened = [path for event, path in events if event == "open" and not isinstance(path, int)]  # not by descriptor
    assert opened  # the hook does see what is opened
    assert [path for path in opened if not path.startswith(str(tmp_path))] == []


EVENTS: list | None = None
HOOKED = False


def _hook(event, arguments):
    if EVENTS is not None and event.split(".")[0] in ("open", "socket", "subprocess", "os", "urllib"):
        first = arguments[0] if arguments else None
        EVENTS.append((event, os.fspath(first) if isinstance(first, str | bytes | os.PathLike) else first))


@contextlib.contextmanager
def recorded():
    """Record audit events; the hook itself cannot be taken away, so it sleeps outside."""
    global EVENTS, HOOKED  # noqa: PLW0603  a hook has no other place to write to
    if not HOOKED:
        sys.addaudithook(_hook)
        HOOKED = True
    EVENTS = events = []
    try:
        yield events
    finally:
        EVENTS = None


# --- the twins: the same files, given to readers that trust them ----------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_broken_twin_rasterio_follows_a_vrt_named_jpg(canary, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text(raster_vrt(canary.path, raw=False))  # raw bands GDAL 3.12 refuses by itself
    canary.opens()
    with contextlib.suppress(rasterio.errors.RasterioError), rasterio.open(path) as dataset:
        dataset.read()
    assert canary.opens() > 0


@pytest.mark.filterwarnings("ignore")
def test_broken_twin_ogr_follows_a_vrt_named_csv(canary, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(ogr_vrt(canary.path))
    canary.opens()
    with contextlib.suppress(pyogrio.errors.DataSourceError):
        pyogrio.read_dataframe(path)
    assert canary.opens() > 0


@pytest.mark.filterwarnings("ignore")
def test_broken_twin_ogr_follows_an_address(listener, tmp_path, monkeypatch):
    # while older pyogrio (0.10, 0.11) waits for an answer, no other thread runs: not the listener either
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    path = tmp_path / "a.csv"
    path.write_text(ogr_vrt(f"/vsicurl/http://127.0.0.1:{listener.port}/a.csv"))
    before = listener.count
    with contextlib.suppress(pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):
        pyogrio.read_dataframe(path)
    until = time.monotonic() + 10
    while listener.count == before and time.monotonic() < until:
        time.sleep(0.01)
    assert listener.count > before


def test_broken_twin_a_plain_open_rings_the_canary(canary):
    canary.opens()
    Path(canary.path).read_bytes()
    assert canary.opens() == 1
