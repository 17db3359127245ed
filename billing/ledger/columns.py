"""What every table is made of: the metadata that names constraints alike, and the column types of both engines."""

from sqlalchemy import BigInteger, Integer, MetaData, Text
from sqlalchemy.types import TypeEngine

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BIG: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits on both: STRICT tables of SQLite know INTEGER, not BIGINT."""

ID: TypeEngine[str] = Text().with_variant(Text(collation="C"), "postgresql")
"""Ids compare by bytes, so that UUIDv7 order is time order on every locale."""
