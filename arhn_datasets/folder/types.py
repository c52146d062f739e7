"""The one type of each column of a split, whatever is null in the rows that come first."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from arhn_datasets.errors import SchemaError
from arhn_datasets.rows.arrow import is_list


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of ``schema``.

    Raises:
        SchemaError: it has others, or values that these types cannot hold.
    """
    if table.schema.equals(schema):
        return table.replace_schema_metadata(schema.metadata)
    check_same_columns(table.column_names, schema.names)
    return pa.Table.from_arrays([_cast(table.column(field.name), field) for field in schema], schema=schema)


def check_same_columns(names: Sequence[str], others: Sequence[str]) -> None:
    """Whether rows have the same columns.

    Raises:
        SchemaError: they have not.
    """
    if differ := sorted(set(names) ^ set(others)):
        raise SchemaError(
            f"Some rows have the columns {differ}, and others have not; the same columns were expected in all. Give "
            "every row all of them, null where there is no value."
        )


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        if not _holds(field.type, column.type):
            raise pa.ArrowInvalid("it has further fields")
        try:
            return column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # lists of nothing, in older versions
            return pa.chunked_array([pa.array(column.to_pylist(), field.type)], field.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise SchemaError(
            f"Column {field.name!r} holds {field.type} in the first rows and {column.type} in later ones "
            f"({str(error)[:200]}); one type was expected. A stream takes its types from the first rows: give all rows "
            "the same type, or run without streaming."
        ) from error


def _holds(type: pa.DataType, found: pa.DataType) -> bool:
    """Whether ``type`` has a place for every field of ``found``: a cast by way of Python would leave it out."""
    if pa.types.is_struct(found) and pa.types.is_struct(type):
        return all(
            (at := type.get_field_index(field.name)) >= 0 and _holds(type.field(at).type, field.type) for field in found
        )
    if hasattr(found, "value_type") and hasattr(type, "value_type"):
        return _holds(type.value_type, found.value_type)
    return True


def common_schema(tables: Sequence[pa.Table]) -> pa.Schema:
    """The one schema of the first tables of a split."""
    from datasets import Features

    first = tables[0].schema
    types = {field.name: field.type for field in first}
    for schema in (table.schema for table in tables if not table.schema.equals(first)):
        check_same_columns(schema.names, first.names)
        for field in schema:
            try:
                types[field.name] = united(types[field.name], field.type)
            except pa.ArrowException as error:
                raise SchemaError(
                    f"Column {field.name!r} holds {types[field.name]} in some rows and {field.type} in others; one "
                    "type was expected. Give all rows the same type first."
                ) from error
    # Of the features that the metadata tell, those of these columns and types stay.
    features = Features.from_arrow_schema(pa.schema(list(types.items()), metadata=first.metadata))
    return pa.schema(list(types.items()), metadata=features.arrow_schema.metadata)


def united(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that has a place for the values of both; the fields of structs keep their order.

    Raises:
        pa.ArrowException: there is none.
    """
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        found = {field.name: field.type for field in one}
        for field in other:
            found[field.name] = united(found[field.name], field.type) if field.name in found else field.type
        return pa.struct(list(found.items()))
    if is_list(one) and is_list(other):
        large = pa.types.is_large_list(one) or pa.types.is_large_list(other)
        return (pa.large_list if large else pa.list_)(united(one.value_type, other.value_type))
    schemas = [pa.schema([("value", type)]) for type in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
